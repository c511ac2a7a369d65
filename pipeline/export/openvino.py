"""OpenVINO: an .xml with its .bin, by way of ONNX."""

from __future__ import annotations

import tempfile
from pathlib import Path

from polyp_difom.cache.errors import RunError, first_line
from polyp_difom.pipeline.export.formats import FORMATS, Format, Job
from polyp_difom.pipeline.export.onnx import to_onnx
from polyp_difom.pipeline.models.exported import KEY, Description, needed


@FORMATS.register("openvino")
class OpenVinoFormat(Format):
    """float16 compresses the weights; the arithmetic stays float32 on CPUs."""

    suffix = ".xml"
    companions = (".bin",)
    precisions = ("float32", "float16", "int8")
    why_not = "OpenVINO computes it in float32, so that frames would differ by a grey level here and there"

    def __init__(self, job: Job):
        openvino = needed("openvino", "openvino")
        self.half = job.precision == "float16"
        graph = to_onnx(Job(job.student, job.frame_size, "float32" if self.half else job.precision, False, job.calibration))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            path.write_bytes(graph.SerializeToString())
            self.model = openvino.Core().read_model(path)  # convert_model would send telemetry

    def write(self, path: Path, about: Description) -> list[Path]:
        """See `Format.write`."""
        self.model.set_rt_info(about.model_dump_json(), [KEY])
        try:
            needed("openvino", "openvino").save_model(self.model, path, compress_to_fp16=self.half)
        except RuntimeError as error:  # OpenVINO's own for a full disk
            raise RunError("cannot write", where=path, got=first_line(error), remedy="free some space") from error
        return [path.with_suffix(".bin"), path]
