"""A folder as the Hugging Face hub holds it: weights, description and model card."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save

from polyp_difom.pipeline.export.card import model_card
from polyp_difom.pipeline.export.formats import FORMATS, Format, Job
from polyp_difom.pipeline.models.exported import Description
from polyp_difom.pipeline.models.hub import CARD, CONFIG, WEIGHTS


@FORMATS.register("hub-folder")
class HubFolder(Format):
    """model.safetensors, config.json and README.md."""

    suffix = ""
    why_not = "its network runs in torch, which resizes outside of it"

    def __init__(self, job: Job):
        self.tensors = {name: tensor.contiguous() for name, tensor in job.student.state_dict().items()}

    def write(self, path: Path, about: Description) -> list[Path]:
        """See `Format.write`."""
        path.mkdir(exist_ok=True)
        (path / WEIGHTS).write_bytes(save(self.tensors, metadata={"format": "pt"}))
        (path / CARD).write_text(model_card(about), encoding="utf-8")
        (path / CONFIG).write_text(about.model_dump_json(indent=2), encoding="utf-8")
        return [path / WEIGHTS, path / CARD, path / CONFIG]
