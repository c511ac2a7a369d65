"""ONNX: from torch to a graph with a free batch size (and free picture size, with the preprocessing inside)."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from polyp_difom.pipeline.export.formats import FORMATS, Format, Job
from polyp_difom.pipeline.export.quantise import to_float16, to_int8
from polyp_difom.pipeline.models.exported import KEY, Description, needed

OPSET = 17
PLAIN_AXES = {"frames": {0: "batch"}, "logits": {0: "batch"}}
EMBEDDED_AXES = {name: {0: "batch", 1: "height", 2: "width"} for name in ("pictures", "probability")}


def to_onnx(job: Job, *, symmetric: bool = False) -> Any:
    """The job's network as an onnx.ModelProto in its precision.

    torch's TorchScript-based exporter is asked for: every torch from 2.5 on has it, it takes 0.2 s where the newer one takes 5,
    and it names nodes after their modules, by which the preprocessing is told from the network.

    Args:
        symmetric: int8 with zero points of 0 and float biases, as TensorRT wants it.
    """
    onnx = needed("onnx", "export")
    s = job.frame_size
    example = torch.zeros(2, s + 3, s + 7, 3, dtype=torch.uint8) if job.embedded else torch.zeros(2, 3, s, s)
    axes = EMBEDDED_AXES if job.embedded else PLAIN_AXES
    with warnings.catch_warnings(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        warnings.simplefilter("ignore")  # that this exporter is the older one, and that sizes are traced
        torch.onnx.export(
            job.network, (example,), path, input_names=[next(iter(axes))], output_names=[list(axes)[1]],
            dynamic_axes=axes, opset_version=OPSET, dynamo=False,
        )  # fmt: skip
        model = onnx.load(path)
    _pad_explicitly(model)
    onnx.checker.check_model(model, full_check=True)
    outside = [node.name for node in model.graph.node if job.embedded and not node.name.startswith("/network/")]
    if job.precision == "float16":
        return to_float16(model, outside)
    return to_int8(model, job, outside, symmetric) if job.precision == "int8" else model


def _pad_explicitly(model: Any) -> None:
    """`padding="same"` as numbers (its stride is 1): ONNX Runtime refuses the named kind where the convolution is dilated."""
    onnx = needed("onnx", "export")
    for node in model.graph.node:
        settings = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        if settings.get("auto_pad", b"").startswith(b"SAME"):
            totals = [d * (k - 1) for d, k in zip(settings["dilations"], settings["kernel_shape"], strict=True)]
            pads = [*(total // 2 for total in totals), *(total - total // 2 for total in totals)]
            kept = [one for one in node.attribute if one.name not in ("auto_pad", "pads")]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute("pads", pads)])


@FORMATS.register("onnx")
class OnnxFormat(Format):
    """One .onnx file."""

    suffix = ".onnx"
    precisions = ("float32", "float16", "int8")
    embeds = True

    def __init__(self, job: Job):
        self.model = to_onnx(job)

    def write(self, path: Path, about: Description) -> list[Path]:
        """See `Format.write`."""
        write_onnx(self.model, path, about)
        return [path]


def write_onnx(model: Any, path: Path, about: Description) -> None:
    """The graph with its description among the metadata."""
    needed("onnx", "export").helper.set_model_props(model, {KEY: about.model_dump_json()})
    path.write_bytes(model.SerializeToString())
