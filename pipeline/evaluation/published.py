"""Figures that other papers publish for the five usual test sets, to stand beside one's own.

All are mean Dice under PraNet's protocol on PraNet's test split (Kvasir 100 frames, ClinicDB 62, CVC-300 60, ColonDB 380,
ETIS 196) after training on its 1,450 frames: comparable with nothing else. They are the authors' claims, not measured here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from polyp_difom.pipeline.data.splitting import published_test


@dataclass(frozen=True)
class PublishedFigure:
    """What a paper claims for one model on one data set; `parameters` is a count, None where not given."""

    model: str
    dataset: str
    mdice: float
    parameters: int | None
    protocol: str
    source: str


# our names and, in lower case, the folder names of PraNet's release
_SETS = {
    "kvasir-seg": 0, "kvasir": 0,
    "cvc-clinicdb": 1,
    "cvc-300": 2,
    "cvc-colondb": 3,
    "etis-larib": 4, "etis-laribpolypdb": 4,
}  # fmt: skip
_IMAGES = (100, 62, 60, 380, 196)  # of PraNet's test split

# model, parameters, mDice on the five sets in the order above, source
_MODELS: tuple[tuple[str, int | None, tuple[float, ...], str], ...] = (
    ("U-Net", None, (0.818, 0.823, 0.710, 0.512, 0.398), "as cited in Fan et al., MICCAI 2020 (arXiv 2006.11392)"),
    ("U-Net++, retrained", None, (0.838, 0.901, 0.789, 0.619, 0.514), "second-hand, original paper unknown"),
    ("PraNet", 32_600_000, (0.898, 0.899, 0.871, 0.712, 0.628), "Fan et al., MICCAI 2020 (arXiv 2006.11392), as cited since"),
    ("Polyp-PVT", 25_100_000, (0.917, 0.937, 0.900, 0.808, 0.787), "Dong et al., 2021 (arXiv 2108.06932)"),
    ("light VAN model", 4_550_000, (0.913, 0.923, 0.909, 0.785, 0.777), "second-hand, original paper unknown"),
    ("SAM-Mamba", 103_000_000, (0.924, 0.942, 0.920, 0.853, 0.848), "Dutta et al., WACV 2025 (arXiv 2412.08482)"),
)


def published(dataset: str, stems: Collection[str]) -> list[PublishedFigure]:
    """Published figures for a data set by its name here or in PraNet's release, oldest model first.

    [] for any other set, and where `stems`, the scored frames, are not those of PraNet's test split: that is another test.
    (Where the split is not listed here, their number decides.)
    """
    place = _SETS.get(dataset.lower())
    if place is None or len(set(stems)) != _IMAGES[place]:
        return []
    listed = published_test(next(name for name, number in _SETS.items() if number == place))
    if listed and set(stems) != listed:
        return []
    return [
        PublishedFigure(model, dataset, mdice[place], parameters, "pranet", source)
        for model, parameters, mdice, source in _MODELS
    ]
