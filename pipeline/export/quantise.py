"""Fewer bits: float16, and int8 by static quantisation (arXiv 1712.05877) with scales from train frames."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from polyp_difom.pipeline.export.formats import Job
from polyp_difom.pipeline.models.exported import needed


def to_float16(model: Any, outside: list[str]) -> Any:
    """An onnx.ModelProto with weights and arithmetic in float16; inputs and outputs stay as they are.

    Args:
        outside: names of nodes that keep their precision.
    """
    float16 = needed("onnxruntime.transformers.float16", "export")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weights too small for float16, of which any network has some; parity is measured
        return float16.convert_float_to_float16(model, keep_io_types=True, node_block_list=outside)


def to_int8(model: Any, job: Job, outside: list[str], symmetric: bool) -> Any:
    """An onnx.ModelProto with explicit QuantizeLinear and DequantizeLinear nodes, weights scaled per output channel.

    Args:
        job: its calibration frames set the scales of the activations.
        outside: names of nodes that are left alone.
        symmetric: zero points of 0 and float biases.
    """
    quantization = needed("onnxruntime.quantization", "export")
    onnx = needed("onnx", "export")
    name = model.graph.input[0].name

    class Frames(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def __init__(self) -> None:
            self.inputs = _inputs(job, name)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.inputs, None)

    with tempfile.TemporaryDirectory() as folder:
        logging.disable(logging.WARNING)  # advice to the makers of graphs
        try:
            quantization.quantize_static(
                onnx.shape_inference.infer_shapes(model), Path(folder) / "int8.onnx", Frames(),
                quant_format=quantization.QuantFormat.QDQ, per_channel=True, nodes_to_exclude=outside,
                activation_type=quantization.QuantType.QInt8, weight_type=quantization.QuantType.QInt8,
                extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True, "QuantizeBias": not symmetric},
            )  # fmt: skip
        finally:
            logging.disable(logging.NOTSET)
        return onnx.load(Path(folder) / "int8.onnx")


def _inputs(job: Job, name: str) -> Iterator[dict[str, Any]]:
    for frame in job.calibration:
        yield {name: frame.transpose(1, 2, 0)[None] if job.embedded else frame[None].astype(np.float32) / 255}
