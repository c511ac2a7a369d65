"""Which backend a path belongs to, told by its content. What runs code is refused: pickles, and TorchScript unless trusted."""

from __future__ import annotations

import zipfile
from pathlib import Path

from polyp_difom.cache.errors import RunError, first_line
from polyp_difom.pipeline.models.protocol import Model
from polyp_difom.pipeline.models.strangers import require_closed

KINDS = "a run folder, a .safetensors checkpoint, a hub folder, or an exported .onnx or .xml (OpenVINO) file"


def load_model(
    path: Path | str, device: str = "auto", precision: str = "float32", threads: int | None = None, *, trust: bool = False
) -> Model:
    """Load a trained model, ready to predict.

    Args:
        path: a run folder, a checkpoint, a hub folder, an exported file, or "hf:ORG/NAME[@REVISION]" for the hub.
        device: "auto", "cpu", "cuda" or "cuda:N"; OpenVINO files run on the CPU.
        precision: "float32" (default, so that figures do not hang on the machine), "bfloat16" or "auto"; torch only.
        threads: CPU threads of ONNX Runtime and OpenVINO; theirs to choose by default.
        trust: open a .torchscript file, which is a program; only for files that you made yourself.

    Raises:
        RunError: nothing there, nothing known, a pickle, or TorchScript that is not trusted. MissingDependencyError: the
        backend is not installed.
    """
    if is_pulled := str(path).startswith("hf:"):
        from polyp_difom.pipeline.models.hub import pulled

        path = pulled(str(path).removeprefix("hf:"))
    path = Path(path)
    kind = kind_of(path)
    if kind in ("run", "checkpoint"):
        from polyp_difom.pipeline.models.network import load_checkpoint, load_run

        return (load_run if kind == "run" else load_checkpoint)(path, device, precision)
    if kind == "hub-folder":
        from polyp_difom.pipeline.models.hub import load_hub_folder

        if not is_pulled:  # what the hub's own store holds are links
            require_closed(path)
        return load_hub_folder(path, device, precision)
    if kind == "onnx":
        from polyp_difom.pipeline.models.onnx import OnnxModel

        return OnnxModel(path, device, threads)
    if kind == "openvino":
        from polyp_difom.pipeline.models.openvino import OpenVinoModel

        return OpenVinoModel(path, threads)
    if not trust:
        raise RunError(
            "a TorchScript file is a program and may write files when it is opened", where=path, wanted=KINDS,
            remedy="export to ONNX and take that; or, if you made the file yourself, add --trust (in Python: trust=True)",
        )  # fmt: skip
    from polyp_difom.pipeline.models.torchscript import TorchScriptModel

    return TorchScriptModel(path, device)


def kind_of(path: Path) -> str:
    """Kind of model at a path, see `ModelInfo.kind`; a folder of anything else raises as well.

    Raises:
        RunError: nothing there, nothing known, or a pickle.
    """
    if path.is_dir():
        if (path / "config.yaml").is_file():
            return "run"
        if (path / "config.json").is_file() and (path / "model.safetensors").is_file():
            return "hub-folder"
        raise RunError("no model in this folder", where=path, wanted=KINDS)
    if not path.is_file():
        raise RunError("no such model", where=path, wanted=KINDS, remedy="check the path")
    if path.suffix == ".xml":
        return "openvino"
    if path.suffix == ".onnx":
        return "onnx"
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return "checkpoint"
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, ValueError, OSError) as error:
            raise RunError("not a model file, or a damaged one", where=path, got=first_line(error), wanted=KINDS) from error
        if any("/code/" in name for name in names):
            return "torchscript"
        if any(name.endswith("data.pkl") for name in names):
            raise _pickle(path)
    if start[:1] == b"\x80":
        raise _pickle(path)
    raise RunError("not a model file that is known here", where=path, got=f"it begins with {start!r}", wanted=KINDS)


def _pickle(path: Path) -> RunError:
    return RunError(
        "the model file is a pickle, and opening a pickle runs whatever code its maker put into it", where=path, wanted=KINDS,
        remedy="ask for the weights as safetensors or ONNX",
    )  # fmt: skip
