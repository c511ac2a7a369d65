"""ONNX as TensorRT's parser takes it, with the command that builds the engine. TensorRT itself never runs here."""

from __future__ import annotations

import shlex
from pathlib import Path

from polyp_difom.cache.errors import RunError
from polyp_difom.pipeline.export.formats import FORMATS, Format, Job
from polyp_difom.pipeline.export.onnx import to_onnx, write_onnx
from polyp_difom.pipeline.models.exported import Description

LARGEST_BATCH = 8
OPERATORS = """
    Abs Add AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv ConvTranspose
    DepthToSpace DequantizeLinear Div Elu Equal Erf Exp Expand Flatten Floor Gather Gemm GlobalAveragePool GlobalMaxPool
    Greater HardSigmoid HardSwish Identity InstanceNormalization LayerNormalization LeakyRelu Less Log MatMul Max
    MaxPool Min Mul Neg Not Or PRelu Pad Pow QuantizeLinear Range ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape
    Resize Selu Shape Sigmoid Slice Softmax Softplus SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh Tile Transpose
    Unsqueeze Where
"""
SUPPORTED = frozenset(OPERATORS.split())
"""Operators of segmentation networks that TensorRT 8.6 and later parse (docs/operators.md of onnx/onnx-tensorrt)."""
RESIZE_MODES = (b"nearest", b"linear")
"""Resize modes that all those versions parse, without antialiasing."""


@FORMATS.register("tensorrt-ready")
class TensorRtFormat(Format):
    """An .onnx file of one frame size and a free batch size; int8 with explicit, symmetric quantisation nodes."""

    suffix = ".onnx"
    companions = (".trtexec.sh",)
    precisions = ("float32", "float16", "int8")
    why_not = "TensorRT wants one frame size, and has no float64"

    def __init__(self, job: Job):
        self.job = job
        self.model = to_onnx(job, symmetric=True)
        unknown = {node.op_type for node in self.model.graph.node} - SUPPORTED
        for node in self.model.graph.node:
            settings = {attribute.name: attribute for attribute in node.attribute}
            if node.op_type == "Resize" and "mode" in settings and settings["mode"].s not in RESIZE_MODES:
                unknown.add(f"Resize in mode {settings['mode'].s.decode()}")
            if node.op_type == "MaxPool" and len(node.output) > 1:
                unknown.add("MaxPool with indices")
        if unknown:
            raise RunError(
                "the network uses what TensorRT's ONNX parser is not known to take", got=", ".join(sorted(unknown)),
                wanted="only operators of its support matrix", remedy="give --to onnx and try the parser yourself",
            )  # fmt: skip
        self.remarks = ("no TensorRT ran here: build and check the engine where it will run",)

    def write(self, path: Path, about: Description) -> list[Path]:
        """See `Format.write`."""
        write_onnx(self.model, path, about)
        script = path.with_suffix(self.companions[0])
        script.write_text(f"#!/bin/sh\n# Not tried: no TensorRT ran where this was written.\n{self.command(path.name)}\n")
        return [script, path]

    def command(self, name: str) -> str:
        """The trtexec call with the optimisation profile, to be given in the file's folder."""
        s = self.job.frame_size
        shapes = [f"--{which}Shapes=frames:{b}x3x{s}x{s}" for which, b in (("min", 1), ("opt", 1), ("max", LARGEST_BATCH))]
        types = "--noTF32" if self.job.precision == "float32" else "--stronglyTyped"
        files = [shlex.quote(f"--onnx={name}"), shlex.quote(f"--saveEngine={Path(name).with_suffix('.engine')}")]
        return " \\\n  ".join([f"trtexec {files[0]}", files[1], *shapes, types])
