"""What an exported file says of itself: where it comes from, what it takes and gives, its figures and terms."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from polyp_difom.cache.errors import RunError, first_line
from polyp_difom.pipeline.data.predicted import PREDICTED
from polyp_difom.pipeline.models.exported import Description, Port, Precision
from polyp_difom.pipeline.students.protocol import Student

LOCAL = ("cache", "device", "export")
"""Of the header, what concerns the machine that trained, or an earlier export, and no one else."""
LARGEST = 1e15
"""Of any figure; infinite ones, and what is none, stay text."""
RESEARCH = "research and educational use only"
TERMS = {
    "kvasir-seg": f"Kvasir-SEG (Simula; Jha et al., MMM 2020): {RESEARCH}",
    "cvc-clinicdb": f"CVC-ClinicDB (Hospital Clinic Barcelona, CVC Barcelona; Bernal et al., 2015): {RESEARCH}, not commercial",
}
"""Terms of data sets, by layout."""


def describe(
    name: str,
    header: Mapping[str, Any],
    parameters: int,
    precision: Precision,
    embedded: bool,
    figures: tuple[dict[str, Any], ...],
    student: Student | None = None,
) -> Description:
    """The description, its parity still open; mean and std are the student's own, and left open without it."""
    s = header["frame_size"]
    frames = Port(name="frames", dtype="float32", shape=(None, 3, s, s), meaning=(
        "whole RGB pictures resized (bilinear, antialiased) to the frame size, divided by 255; "
        "the normalisation (mean and std below) is part of the network"
    ))  # fmt: skip
    logits = Port(name="logits", dtype="float32", shape=(None, 1, s, s), meaning="sigmoid gives the probability of polyp")
    pictures = Port(name="pictures", dtype="uint8", shape=(None, None, None, 3), meaning="whole RGB pictures of any size")
    probability = Port(name="probability", dtype="float32", shape=(None, None, None), meaning="of polyp, at the pictures' size")
    return Description(
        name=name, parameters=parameters, frame_size=s, embedded_preprocessing=embedded,
        input=pictures if embedded else frames, output=probability if embedded else logits,
        mean=_per_channel(student.mean) if student else None, std=_per_channel(student.std) if student else None,
        precision=precision,
        header={key: value for key, value in header.items() if key not in LOCAL},
        figures=figures, licence=licence(header),
        software={package: version(package) for package in ("polyp-difom", "torch")},
    )  # fmt: skip


def terms(header: Mapping[str, Any]) -> list[str]:
    """One sentence for each data set that the run learned from."""
    datasets = header.get("provenance", {}).get("datasets", [])
    yours = "its terms are for you to check"
    others = {PREDICTED: f"its masks were predicted by a network, and {yours}"}
    return [TERMS.get(layout := entry.get("layout"), f"{entry['name']}: {others.get(layout, yours)}") for entry in datasets]


def licence(header: Mapping[str, Any]) -> str:
    """Terms that bear on the weights; polyp-difom claims none of its own."""
    teachers = header.get("provenance", {}).get("teachers", [])
    sources = [*terms(header), *(f"teacher {teacher['name']}: {teacher['licence']}" for teacher in teachers)]
    return "; ".join(sources) if sources else "unknown: the checkpoint does not say what it was trained on"


def figures_of(model: Path, header: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Rows of a run's results.csv, numbers as numbers; empty cells left out; else what an earlier export tells."""
    path = model / "results.csv"
    if not path.is_file():
        return tuple(header.get("export", {}).get("figures", ()))
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(
            "the run's figures cannot be read", where=path, got=first_line(error), remedy="evaluate again"
        ) from error
    if any(None in row or None in row.values() for row in rows):
        raise RunError("the run's figures are damaged", where=path, got="a row of another length", remedy="evaluate again")
    return tuple({name: _number(value) for name, value in row.items() if value} for row in rows)


def _per_channel(values: Tensor) -> tuple[float, float, float]:
    red, green, blue = values.flatten().tolist()
    return red, green, blue


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if abs(value) < LARGEST else text
    return text
