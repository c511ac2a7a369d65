"""TorchScript: traced and frozen, for C++ and for Python without this package."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import torch

from polyp_difom.pipeline.export.formats import FORMATS, Format, Job
from polyp_difom.pipeline.models.exported import KEY, Description


@FORMATS.register("torchscript")
class TorchScriptFormat(Format):
    """One .torchscript file."""

    suffix = ".torchscript"
    embeds = True

    def __init__(self, job: Job):
        s = job.frame_size
        example = torch.zeros(2, s + 3, s + 7, 3, dtype=torch.uint8) if job.embedded else torch.zeros(2, 3, s, s)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # that sizes are traced; parity is measured at several
            self.network = torch.jit.freeze(torch.jit.trace(job.network, (example,), check_trace=False))

    def write(self, path: Path, about: Description) -> list[Path]:
        """See `Format.write`."""
        whole = io.BytesIO()  # on a full disk, torch aborts the process
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch would rather have another format
            torch.jit.save(self.network, whole, _extra_files={KEY: about.model_dump_json()})
        path.write_bytes(whole.getvalue())
        return [path]
