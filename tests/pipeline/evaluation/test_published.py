"""Published figures: found under our names and PraNet's, with what they are comparable to."""

from __future__ import annotations

import pytest

from polyp_difom.pipeline.data.layouts import LAYOUTS
from polyp_difom.pipeline.evaluation.published import published
from polyp_difom.pipeline.evaluation.scoring import PROTOCOLS


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("kvasir-seg", "Kvasir"),
        ("cvc-clinicdb", "CVC-ClinicDB"),
        ("cvc-colondb", "CVC-ColonDB"),
        ("etis-larib", "ETIS-LaribPolypDB"),
    ],
)
def test_a_set_has_the_same_figures_under_both_names(ours: str, theirs: str) -> None:
    assert ours in LAYOUTS.names()
    assert [figure.mdice for figure in published(ours)] == [figure.mdice for figure in published(theirs)]
    assert {figure.dataset for figure in published(theirs)} == {theirs}


def test_every_figure_names_its_protocol_and_source() -> None:
    sets = ("kvasir-seg", "cvc-clinicdb", "cvc-300", "cvc-colondb", "etis-larib")
    figures = [figure for dataset in sets for figure in published(dataset)]
    assert len(figures) == 30
    assert all(figure.protocol in PROTOCOLS and figure.source and 0 < figure.mdice < 1 for figure in figures)
    pranet = [figure for figure in figures if figure.model == "PraNet"]
    assert [figure.mdice for figure in pranet] == [0.898, 0.899, 0.871, 0.712, 0.628]
    assert {figure.parameters for figure in pranet} == {32_600_000}


def test_an_unknown_set_has_none() -> None:
    assert published("synthetic") == []
