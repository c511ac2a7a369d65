"""A pretended GPU: tensors that say "cuda" and compute on the CPU. Who mixes devices fails, who waits for the device is noted.

Whether a tensor lies there is kept with its storage, so views and gradients know it too. Two modes of torch watch: a function
mode answers what Python asks (`.device`, `.to`, `device=`), a dispatch mode sees every operator, those of backward too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive,
    aten.bincount, aten.equal, aten.repeat_interleave,
}  # fmt: skip
"""Operators whose result the host must see before it can go on."""
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
"""Take indices of the CPU for tensors of the GPU, and copy them there."""
FROM_PYTHON = {torch.tensor, torch.as_tensor, Tensor.new_tensor}


class DeviceMix(RuntimeError):
    """An operator was given tensors of two devices."""


def on_gpu(tensor: Tensor) -> bool:
    """Whether a tensor pretends to lie on the GPU."""
    return getattr(tensor.untyped_storage(), "pretended", False)


def _mark(value: Any, there: bool) -> Any:
    for tensor in tree_leaves(value):
        if isinstance(tensor, Tensor) and tensor.device.type == "cpu":
            tensor.untyped_storage().pretended = there  # type: ignore[attr-defined]
    return value


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _place() -> str:
    """The innermost function of the package that is running, as "module.function"."""
    frame = sys._getframe(1)
    while frame and not frame.f_globals.get("__name__", "").startswith("polyp_difom."):
        frame = frame.f_back  # type: ignore[assignment]
    if not frame:
        return "the test"
    function = frame.f_code.co_qualname.partition(".<locals>")[0]
    return f"{frame.f_globals['__name__'].removeprefix('polyp_difom.')}.{function}"


class PretendedCuda(TorchFunctionMode):
    """Within `pretended_cuda()`.

    Attributes:
        waits: what the host waited for, as "operator at module.function".
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.coming: list[torch.UntypedStorage] = []
        """Pinned memory that copies to the host are under way to."""
        self.around: bool | None = None
        """Where the call in progress works: what it makes without any tensor lies there."""
        self.forced = False
        """The call in progress makes what lies there, whatever it is made from."""

    def wait(self, what: str) -> None:
        """Note that the host waits."""
        self.waits.append(f"{what} at {_place()}")

    @contextmanager
    def placing(self, around: bool | None, forced: bool) -> Iterator[None]:
        """Within it, new tensors lie there."""
        before = self.around, self.forced
        self.around, self.forced = around, forced
        try:
            yield
        finally:
            self.around, self.forced = before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (own := ANSWERS.get(func)) is not None:
            return own(self, *args, **kwargs)
        if kwargs.get("pin_memory"):
            made = func(*args, **{**kwargs, "pin_memory": False})
            made.untyped_storage().pinned = True
            return made
        device = kwargs.get("device")
        if device is not None and (named := torch.device(device)).type in ("cuda", "cpu"):
            return self._make(func, args, kwargs, there=named.type == "cuda")
        there = any(on_gpu(tensor) for tensor in _tensors((args, kwargs)))
        with self.placing(there or None, forced=False):
            return func(*args, **kwargs)

    def _make(self, func: Any, args: Any, kwargs: Any, there: bool) -> Any:
        """A call with `device=`."""
        if func is torch.as_tensor and isinstance(args[0], Tensor):
            return _to(self, *args, **kwargs)
        if there and (generator := kwargs.get("generator")) and generator.device.type == "cpu":
            raise DeviceMix(f"{func.__name__} on cuda with a generator of the CPU at {_place()}")
        if there and func in FROM_PYTHON:
            self.wait("a copy of Python numbers to the GPU")
        with self.placing(there, forced=True):
            return _mark(func(*args, **{**kwargs, "device": CPU}), there)


def _to(mode: PretendedCuda, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.to` in all its forms."""
    other = kwargs.pop("other", None)
    device, dtype, flags = kwargs.pop("device", None), kwargs.pop("dtype", None), []
    for value in (*args, other):
        if isinstance(value, Tensor):
            device, dtype = CUDA if on_gpu(value) else value.device, value.dtype
        elif isinstance(value, (str, torch.device)):
            device = value
        elif isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, bool):
            flags.append(value)
    non_blocking = kwargs.pop("non_blocking", flags[0] if flags else False)
    kwargs.setdefault("copy", flags[1] if len(flags) > 1 else False)
    here = on_gpu(tensor)
    kind = torch.device(device).type if device is not None else None
    if kind not in (None, "cpu", "cuda"):
        return tensor.to(device, dtype, **kwargs)
    there = here if kind is None else kind == "cuda"
    if there == here:
        with mode.placing(there, forced=False):
            return tensor.to(dtype=dtype or tensor.dtype, **kwargs)
    _cross(mode, tensor, there, non_blocking)
    with mode.placing(there, forced=True):
        return _mark(tensor.to(dtype=dtype or tensor.dtype, **{**kwargs, "copy": True}), there)


def _cross(mode: PretendedCuda, source: Tensor, there: bool, non_blocking: bool, target: Tensor | None = None) -> None:
    if there and not (non_blocking and getattr(source.untyped_storage(), "pinned", False)):
        mode.wait("a copy of pageable memory to the GPU" if non_blocking else "a blocking copy to the GPU")
    if not there:
        if non_blocking and target is not None and getattr(target.untyped_storage(), "pinned", False):
            target.untyped_storage().arriving = True  # type: ignore[attr-defined]
            mode.coming.append(target.untyped_storage())
            return
        if non_blocking:
            raise DeviceMix(f"a copy to the host that nobody waits for at {_place()}")
        mode.wait("a copy to the host")


def _pin(mode: PretendedCuda, tensor: Tensor, *_: Any) -> Tensor:
    if on_gpu(tensor):
        raise DeviceMix(f"cannot pin a tensor of the GPU at {_place()}")
    pinned = tensor.clone()
    pinned.untyped_storage().pinned = True  # type: ignore[attr-defined]
    return pinned


def _on_host(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(mode: PretendedCuda, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if on_gpu(tensor):
            raise TypeError(f"can't convert a cuda tensor to numpy at {_place()}")
        if getattr(tensor.untyped_storage(), "arriving", False):
            raise DeviceMix(f"read before its copy has arrived at {_place()}")
        return method(tensor, *args, **kwargs)

    return call


def _tolist(mode: PretendedCuda, tensor: Tensor) -> Any:
    if on_gpu(tensor):
        mode.wait("tolist")
    return tensor.detach().numpy().tolist()


def _setitem(mode: PretendedCuda, tensor: Tensor, index: Any, value: Any) -> None:
    """A number is made into a tensor where the written one lies: torch makes it without a copy."""
    there = on_gpu(tensor)
    if there and isinstance(value, (bool, int, float)):
        value = _mark(torch.tensor(value, dtype=tensor.dtype), True)
    with mode.placing(there or None, forced=False):
        tensor[index] = value


def _deepcopy(mode: PretendedCuda, tensor: Tensor, memo: Any) -> Tensor:
    there = on_gpu(tensor)
    with mode.placing(there, forced=True):
        return _mark(Tensor.__deepcopy__(tensor, memo), there)


_tensor: Any = Tensor
ANSWERS: dict[Any, Callable[..., Any]] = {
    _tensor.device.__get__: lambda mode, t: CUDA if on_gpu(t) else t.device,
    _tensor.is_cuda.__get__: lambda mode, t: on_gpu(t),
    _tensor.is_cpu.__get__: lambda mode, t: not on_gpu(t) and t.is_cpu,
    Tensor.get_device: lambda mode, t: 0 if on_gpu(t) else -1,
    Tensor.to: _to,
    Tensor.cpu: lambda mode, t, *a, **k: _to(mode, t, CPU, *a, **k),
    Tensor.cuda: lambda mode, t, device=None, **k: _to(mode, t, CUDA, **k),
    Tensor.pin_memory: _pin,
    Tensor.is_pinned: lambda mode, t: getattr(t.untyped_storage(), "pinned", False),
    Tensor.numpy: _on_host(Tensor.numpy),
    Tensor.__array__: _on_host(Tensor.__array__),
    Tensor.tolist: _tolist,
    Tensor.__setitem__: _setitem,
    Tensor.__deepcopy__: _deepcopy,
}


class _Operators(TorchDispatchMode):
    """Sees every operator below autograd: refuses mixtures, notes waits, and marks what comes out."""

    def __init__(self, mode: PretendedCuda):
        super().__init__()
        self.mode = mode

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = kwargs or {}, func.overloadpacket
        tensors = _tensors((args, kwargs))
        there = [on_gpu(tensor) for tensor in tensors]
        if self.mode.forced:
            return self._made(func(*args, **kwargs), tensors, bool(self.mode.around))
        if packet is aten.copy_:
            if there[0] != there[1]:
                non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
                _cross(self.mode, tensors[1], there[0], non_blocking, tensors[0])
            return func(*args, **kwargs)
        if any(there):
            if not all(there):
                self._check(func, tensors, there)
            self._waits(packet, args)
        return self._made(func(*args, **kwargs), tensors, any(there) if tensors else bool(self.mode.around))

    def _made(self, out: Any, tensors: list[Tensor], there: bool) -> Any:
        known = {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}
        fresh = [t for t in _tensors(out) if not t.numel() or t.untyped_storage().data_ptr() not in known]
        _mark(fresh, there)
        return out

    def _check(self, func: Any, tensors: list[Tensor], there: list[bool]) -> None:
        """What torch allows: numbers of the CPU in elementwise operators, and indices of the CPU."""
        strays = [tensor for tensor, gpu in zip(tensors, there, strict=True) if not gpu]
        if func.overloadpacket in INDEXING and there[0]:
            if any(stray.ndim or stray.dtype in (torch.bool, torch.uint8) for stray in strays):
                self.mode.wait("a copy of indices to the GPU")
            return
        written = func._schema.is_mutable and not there[0]
        if torch.Tag.pointwise in func.tags and not written and all(stray.ndim == 0 for stray in strays):
            return
        shapes = ", ".join(f"{'cuda' if gpu else 'cpu'}{list(t.shape)}" for t, gpu in zip(tensors, there, strict=True))
        raise DeviceMix(f"{func} of {shapes} at {_place()}")

    def _waits(self, packet: Any, args: Any) -> None:
        if packet in WAITING:
            self.mode.wait(packet.__name__)
        if packet in INDEXING:
            masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
            filled = packet is not aten.index and len(args[1]) == 1 and args[2].numel() == 1  # becomes masked_fill
            if masks and not filled:
                self.mode.wait("indexing by a mask")


class _Event:
    """Of `torch.cuda`: knows of the copies that were under way when it was recorded."""

    def __init__(self, mode: PretendedCuda):
        self.mode, self.told = mode, list[torch.UntypedStorage]()

    def record(self, stream: Any) -> None:
        self.told, self.mode.coming = self.mode.coming, []

    def synchronize(self) -> None:
        self.mode.wait("an event")
        for storage in self.told:
            storage.arriving = False  # type: ignore[attr-defined]


def _grouped(groups: Any) -> Callable[..., Any]:
    """torch's grouping of lists of tensors by (device, dtype), which looks below both modes."""

    def group(lists: Any, *args: Any) -> Any:
        there = any(on_gpu(tensor) for tensor in lists[0] if tensor is not None)
        return {((CUDA if there else device), dtype): value for (device, dtype), value in groups(lists, *args).items()}

    return group


@contextmanager
def pretended_cuda() -> Iterator[PretendedCuda]:
    """Within it, this machine has one GPU of 8 GiB."""
    mode, autocast = PretendedCuda(), torch.autocast
    answers: dict[str, Any] = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0, "set_device": lambda device: None,
        "get_device_name": lambda device=None: "pretended", "mem_get_info": lambda device=None: (8 << 30, 8 << 30),
        "get_device_properties": lambda device=None: SimpleNamespace(total_memory=8 << 30, name="pretended"),
        "is_bf16_supported": lambda including_emulation=True: False, "empty_cache": lambda: None,
        "Event": lambda: _Event(mode), "current_stream": lambda device=None: None,
        "synchronize": lambda device=None: mode.wait("synchronize"), "is_current_stream_capturing": lambda: False,
    }  # fmt: skip
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(patch.object(torch.cuda, name, answer))
        stack.enter_context(patch.object(torch, "autocast", lambda kind, *a, **k: autocast("cpu", *a, **k)))
        groups = torch._C._group_tensors_by_device_and_dtype
        stack.enter_context(patch.object(torch._C, "_group_tensors_by_device_and_dtype", _grouped(groups)))
        for name in {"_cuda_graph_capture_health_check", "_accelerator_graph_capture_health_check"} & {
            *dir(torch.optim.Optimizer)
        }:
            stack.enter_context(patch.object(torch.optim.Optimizer, name, lambda optimizer: None))
        stack.enter_context(_Operators(mode))
        yield stack.enter_context(mode)
