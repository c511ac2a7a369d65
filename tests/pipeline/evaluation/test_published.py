"""Published figures: found under our names and PraNet's, with what they are comparable to."""

from __future__ import annotations

import pytest

from polyp_difom.pipeline.data.layouts import LAYOUTS
from polyp_difom.pipeline.data.splitting import published_test
from polyp_difom.pipeline.evaluation.published import published
from polyp_difom.pipeline.evaluation.scoring import PROTOCOLS

# frames of PraNet's test split; where they are not listed, any names in their number
TEST = {
    "kvasir-seg": published_test("kvasir-seg"),
    "cvc-clinicdb": published_test("cvc-clinicdb"),
    **{name: {str(n) for n in range(count)} for name, count in (("cvc-300", 60), ("cvc-colondb", 380), ("etis-larib", 196))},
}


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
    stems = TEST[ours]
    assert [figure.mdice for figure in published(ours, stems)] == [figure.mdice for figure in published(theirs, stems)]
    assert {figure.dataset for figure in published(theirs, stems)} == {theirs}


def test_every_figure_names_its_protocol_and_source() -> None:
    figures = [figure for dataset, stems in TEST.items() for figure in published(dataset, stems)]
    assert len(figures) == 30
    assert all(figure.protocol in PROTOCOLS and figure.source and 0 < figure.mdice < 1 for figure in figures)
    pranet = [figure for figure in figures if figure.model == "PraNet"]
    assert [figure.mdice for figure in pranet] == [0.898, 0.899, 0.871, 0.712, 0.628]
    assert {figure.parameters for figure in pranet} == {32_600_000}


def test_an_unknown_set_has_none() -> None:
    assert published("synthetic", ["0"]) == []


@pytest.mark.parametrize("dataset", TEST)
def test_other_frames_than_the_published_test_split_have_none(dataset: str) -> None:
    stems = sorted(TEST[dataset])
    assert published(dataset, stems)
    assert published(dataset, stems[1:]) == []
    assert published(dataset, [*stems, "another"]) == []


@pytest.mark.parametrize("dataset", ["kvasir-seg", "cvc-clinicdb"])
def test_as_many_frames_as_the_published_split_but_others_have_none(dataset: str) -> None:
    stems = sorted(TEST[dataset])
    assert published(dataset, [*stems[1:], "another"]) == []
