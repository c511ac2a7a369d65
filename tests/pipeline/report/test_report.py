"""The page: complete, self-contained, escaped, and honest about a teacher that did not help."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.evaluation.calibration import Calibration, ReliabilityRow
from polyp_difom.pipeline.evaluation.metrics import SizeBand, Summary
from polyp_difom.pipeline.evaluation.paired import PairedDifference
from polyp_difom.pipeline.evaluation.published import PublishedFigure
from polyp_difom.pipeline.report.page import write_report
from polyp_difom.pipeline.report.values import GalleryItem, RunReport, Timing
from polyp_difom.pipeline.report.verdicts import grouped, told, verdicts

VOID = {"meta", "img", "br"}
KVASIR, ETIS = "kvasir-seg (test)", "etis-larib (test)"
RECIPE = {"student": "unet", "epochs": 24, "signature": "abc123"}


def summary(dataset: str, mdice: float, protocol: str = "per-image") -> Summary:
    bands = (SizeBand("small", 10, mdice - 0.2), SizeBand("medium", 70, mdice), SizeBand("large", 0, None))
    rows = (ReliabilityRow(0.1, 0.2, 900), ReliabilityRow(0.9, 0.8, 100))
    return Summary(
        protocol, dataset, 80, mdice, mdice - 0.08, 0.9, 0.85, 0.04, (mdice - 0.03, mdice + 0.03), bands,
        hd95=23.45, s_measure=0.911, weighted_f=0.822, e_mean=0.933, e_max=0.944, calibration=Calibration(0.123, 1000, rows),
    )  # fmt: skip


def gain(mean: float, low: float, high: float, improved: float = 0.7) -> PairedDifference:
    return PairedDifference(80, mean, (low, high), improved)


def epoch(number: int, dice: float, **more: float) -> dict[str, float]:
    return {"epoch": number, "val_dice": dice, "seconds": 3.1, "segmentation": 1 / number, **more}


CONTROL = RunReport(
    "control", "run", {**RECIPE, "objective": "none", "teachers": []}, "unet", "none", (), 0, 24, 7_850_000,
    [summary(KVASIR, 0.8123), summary(ETIS, 0.5)], macs=9_000_000_000, timing=Timing(12.5, "a CPU, 2 threads"),
    dice={KVASIR: [0.2, 0.8, 0.9], ETIS: [0.1, 0.5, 0.9]}, curve=[epoch(1, 0.4), epoch(2, 0.7)],
    facts={"store signature": "abc123", "seed": "0"},
)  # fmt: skip
_AGREED = {"litemedsam/s16/bottleneck/cosine": 0.71, "litemedsam/s16/bottleneck/explained": 0.52,
           "litemedsam/s16/bottleneck/target_variance": 0.83}  # fmt: skip
RIVAL = PublishedFigure("PraNet", "kvasir-seg", 0.898, 32_600_000, "pranet", "arXiv 2006.11392")
TAUGHT = replace(
    CONTROL, rivals={KVASIR: [RIVAL]}, name="taught", recipe={**RECIPE, "objective": "multiscale", "teachers": ["litemedsam"]}, objective="multiscale",
    teachers=("litemedsam",), summaries=[summary(KVASIR, 0.8567), summary(ETIS, 0.49)],
    differences={KVASIR: gain(0.0444, 0.021, 0.065), ETIS: gain(0.01, -0.03, 0.05, 0.55)}, control="control",
    gallery=[GalleryItem("worst: a, Dice 0.100", np.full((300, 1200, 3), 180, np.uint8)),
             GalleryItem("best: b, Dice 0.990", np.full((90, 120, 3), 60, np.uint8))],
    curve=[epoch(1, 0.5, **_AGREED), epoch(2, 0.8, **_AGREED)], facts={"store signature": "abc123", "seed": "0"},
    cautions=("litemedsam: whether its own training held polyp frames is unknown",),
)  # fmt: skip
MASKS = RunReport(
    "othertool", "masks", {"target": "othertool"}, None, None, (), None, None, None, [summary(KVASIR, 0.7)],
    dice={KVASIR: [0.6, 0.7, 0.8]}, facts={"teachers": "unknown"},
)  # fmt: skip


def seeded(run: RunReport, seed: int, difference: PairedDifference | None = None) -> RunReport:
    """The same recipe with another seed, and on kvasir-seg alone with this gain."""
    gains = {KVASIR: difference} if difference else {}
    return replace(
        run,
        name=f"{run.name}-s{seed}",
        seed=seed,
        summaries=[summary(KVASIR, 0.8 + 0.02 * seed)],
        differences=gains,
        gallery=[],
    )


class Page(HTMLParser):
    """The page's elements and text; fails where tags do not nest."""

    def __init__(self, path: Path):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text = re.sub(" +", " ", f"{self.text} {' '.join(data.split())}")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page(tmp_path: Path, *runs: RunReport, title: str = "Two runs") -> Page:
    write_report(tmp_path / "out" / "report.html", list(runs), title)
    return Page(tmp_path / "out" / "report.html")


def judged(*runs: RunReport) -> list[tuple[str, str]]:
    (group,) = grouped(runs)
    return [(verdict.word, verdict.sentence) for verdict in verdicts(group)]


def test_the_page_holds_figures_intervals_origins_and_the_warning(tmp_path):
    text = page(tmp_path, TAUGHT, CONTROL).text
    figures = ("0.857 [0.827, 0.887]", "0.812", "0.777", "80 frames", "7.85 M", "+4.4 [+2.1, +6.5]", "70 %")
    others = ("0.822", "0.911", "0.933", "0.944", "23.4", "0.123", "9,000.00 M MACs", "12.5 ms on a CPU, 2 threads")
    words = ("litemedsam", "none (control)", "abc123", "Protocol per-image", "not a medical device", "whether its own training")
    for piece in (*figures, *others, *words):
        assert piece in text, piece
    assert "not scored" not in text


def test_the_page_asks_nothing_of_the_network(tmp_path):
    found = page(tmp_path, TAUGHT, CONTROL)
    addresses = [value for _, attributes in found.elements for name, value in attributes.items() if name in ("src", "href")]
    assert len(addresses) == 2
    assert all(address.startswith("data:image/jpeg;base64,") for address in addresses)
    assert not re.search(r"@import|url\(|https?://", found.source)
    assert not found.all("script") + found.all("link") + found.all("iframe")


def test_headings_descend_by_one_and_every_chart_and_picture_says_what_it_shows(tmp_path):
    found = page(tmp_path, TAUGHT, CONTROL)
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in pairwise(levels))
    assert found.source.count("<svg") == found.source.count("</title><desc>") > 10
    assert all(image["alt"] for image in found.all("img"))


def test_pictures_keep_the_order_given_and_are_at_most_640_wide(tmp_path):
    images = page(tmp_path, TAUGHT).all("img")
    pictures = [Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))) for image in images]
    assert [image["alt"] for image in images] == ["worst: a, Dice 0.100", "best: b, Dice 0.990"]
    assert [picture.size for picture in pictures] == [(640, 160), (120, 90)]
    assert [np.asarray(picture)[0, 0, 0] for picture in pictures] == pytest.approx([180, 60], abs=2)


def test_a_gain_is_claimed_only_where_the_whole_interval_is_above_zero():
    (helped, first), (neither, second) = judged(TAUGHT)
    assert (helped, neither) == ("helped", "no difference")
    assert (
        f"On {KVASIR}, the teacher litemedsam helped: +4.4 points of Dice (one seed; 95 % interval over frames +2.1 to +6.5)"
        in first
    )
    assert "70% of 80 frames" in first
    assert f"On {ETIS}, no difference can be shown for the teacher litemedsam: +1.0 points" in second
    assert "the interval includes zero" in second


def test_a_teacher_that_harms_is_said_to_harm(tmp_path):
    run = replace(TAUGHT, differences={KVASIR: gain(-0.02, -0.03, -0.01, 0.2)})
    assert "did not help but harm: −2.0 points" in page(tmp_path, run, CONTROL).text


def test_a_teacher_did_not_help_only_where_its_interval_ends_at_zero() -> None:
    run = replace(TAUGHT, differences={label: gain(-0.01, -0.03, 0.0) for label in (KVASIR, ETIS)})
    assert {word for word, _ in judged(run)} == {"did not help"}
    assert "the teacher litemedsam did not help: −1.0 points" in judged(run)[0][1]
    assert "zero" not in judged(run)[0][1]


@pytest.mark.parametrize(
    ("over", "word", "said"),
    [
        (gain(0.03, 0.01, 0.05), "helped", "multiscale beats shuffled, so it matters what the teacher saw: +3.0 points"),
        (gain(0.03, -0.01, 0.05), "no difference", "multiscale is not shown to differ from shuffled: a gain may come from"),
        (gain(-0.03, -0.05, -0.01), "harmed", "multiscale is worse than shuffled, which learns from the wrong frames: −3.0"),
    ],
)
def test_a_run_beside_its_shuffled_form_is_judged_as_in_a_sweep(
    over: PairedDifference, word: str, said: str, tmp_path: Path
) -> None:
    run = replace(TAUGHT, shuffled="shuffled", over_shuffled={KVASIR: over})
    assert (judged(run)[-1][0], len(judged(run))) == (word, 3)
    assert f"On {KVASIR}, {said}" in page(tmp_path, run, CONTROL).text
    assert told([run])["gains_over_shuffled"]["taught"][KVASIR]["mean"] == over.mean


def test_a_set_without_a_control_is_named_as_unproven():
    ((verdict, sentence),) = judged(replace(TAUGHT, differences={}))
    assert verdict == "unknown"
    assert "no control to compare with" in sentence
    partly = judged(replace(TAUGHT, differences={KVASIR: TAUGHT.differences[KVASIR]}))
    assert [verdict for verdict, _ in partly] == ["helped", "unknown"]
    assert partly[1][1].startswith(f"On {ETIS}, ")


def test_a_control_gets_no_verdict(tmp_path):
    assert "Did the teacher help" not in page(tmp_path, CONTROL).text


def test_seeds_of_one_recipe_are_summed_up_and_all_must_gain(tmp_path):
    sure, unsure = gain(0.04, 0.02, 0.06), gain(0.02, -0.01, 0.05)
    both = (seeded(TAUGHT, 0, sure), seeded(TAUGHT, 1, sure))
    assert [word for word, _ in judged(*both)] == ["helped"]
    ((word, sentence),) = judged(seeded(TAUGHT, 0, sure), seeded(TAUGHT, 1, unsure))
    assert word == "mixed"
    assert "+3.0 points of Dice on average over 2 seeds" in sentence
    assert "seed 0 +4.0 (+2.0 to +6.0); seed 1 +2.0 (−1.0 to +5.0)" in sentence
    assert [word for word, _ in judged(seeded(TAUGHT, 0, unsure), seeded(TAUGHT, 1, unsure))] == ["no difference"]
    text = page(tmp_path, *both, seeded(CONTROL, 0), seeded(CONTROL, 1)).text
    assert text.count("0.810 ± 0.014") == 2  # 0.80 and 0.82, once for the taught and once for the controls
    assert "multiscale, 2 seeds" in text


def test_runs_that_differ_in_more_than_the_seed_are_no_seeds_of_one_recipe():
    longer = replace(seeded(TAUGHT, 1), recipe={**TAUGHT.recipe, "epochs": 48})
    assert [group.label for group in grouped([TAUGHT, longer, CONTROL])] == [
        "multiscale, epochs 24",
        "multiscale, epochs 48",
        "none, epochs 24",
    ]


def test_a_folder_of_masks_gets_figures_but_no_verdict_and_no_invented_origins(tmp_path):
    found = page(tmp_path, MASKS, TAUGHT, CONTROL)
    assert "training unknown" in found.text
    assert "othertool" not in found.text.partition("Dice by test set")[0]
    assert found.text.count("not scored") == 1


def test_published_figures_are_called_not_comparable_under_another_protocol(tmp_path):
    assert "Not comparable: the published figures are under the protocol pranet" in page(tmp_path, TAUGHT).text
    strict = replace(TAUGHT, summaries=[summary(KVASIR, 0.8, "pranet")], differences={})
    found = page(tmp_path, strict)
    assert "Not comparable" not in found.text
    assert "arXiv 2006.11392" in found.text
    assert 'class="s0 hollow"' in found.source
    every = replace(
        TAUGHT, summaries=[summary("kvasir-seg (all)", 0.8)], differences={}, dice={"kvasir-seg (all)": [0.8]}, rivals={}
    )
    assert "published" not in page(tmp_path, every).text  # nobody published a figure of all its frames


def test_figures_without_leaks_stand_beside_the_full_ones_with_their_number(tmp_path):
    less = replace(summary(KVASIR, 0.75), images=71)
    text = page(tmp_path, replace(TAUGHT, without_leaks={KVASIR: less}), CONTROL).text
    assert "0.857 [0.827, 0.887] 80 frames without 9 leaked frames: 0.750 [0.720, 0.780]" in text


def test_facts_that_all_runs_share_are_said_once(tmp_path):
    other = replace(CONTROL, facts={"store signature": "abc123", "seed": "5"})
    assert (
        page(tmp_path, TAUGHT, other, replace(MASKS, facts={"store signature": "unknown", "seed": "unknown"})).text.count(
            "abc123"
        )
        == 1
    )
    assert "unknown store signature, seed" in Page(tmp_path / "out" / "report.html").text


def test_measures_that_were_not_taken_are_dashes_and_leave_their_chart_out(tmp_path):
    bare = replace(summary(KVASIR, 0.8), hd95=None, s_measure=None, weighted_f=None, e_mean=None, e_max=None, calibration=None)
    text = page(tmp_path, replace(MASKS, summaries=[bare])).text
    assert "0.900 0.850 – – – – 0.040 – –" in text
    assert "Calibration around" not in text
    assert "Dice against cost" not in text
    assert "Learning curves" not in text


def test_all_text_stays_text(tmp_path):
    evil = "<script>alert(1)</script>\"'&{{ 7 * 7 }}"
    run = replace(
        TAUGHT,
        name=evil, student=evil, objective=evil, teachers=(evil,), summaries=[summary(evil, 0.5)], facts={evil: evil},
        differences={evil: TAUGHT.differences[KVASIR]}, gallery=[GalleryItem(evil, np.zeros((4, 4, 3), np.uint8))],
        dice={evil: [0.5]}, cautions=(evil,), timing=Timing(1, evil),
    )  # fmt: skip
    found = page(tmp_path, run, replace(MASKS, name="plain"), title=evil)
    assert not found.all("script")
    assert found.text.count("alert(1)") >= 20
    assert "{{ 7 * 7 }}" in found.text
    assert found.all("img")[0]["alt"] == evil


def test_figures_of_two_protocols_are_not_put_on_one_page(tmp_path):
    strict = replace(CONTROL, summaries=[summary(KVASIR, 0.81, "pranet")])
    with pytest.raises(UsageError, match="one protocol"):
        page(tmp_path, TAUGHT, strict)
    assert not (tmp_path / "out").exists()


def test_learning_curves_show_the_control_the_losses_and_the_agreement(tmp_path):
    found = page(tmp_path, TAUGHT, CONTROL, replace(CONTROL, name="no history", curve=[]))
    assert "taught: validation Dice, best 0.800 in epoch 2; its control is control." in found.text
    assert "Last values: Dice 0.800, control 0.700." in found.text
    assert "Last values: segmentation 0.500." in found.text
    assert "Last values: s16 bottleneck 0.710." in found.text
    assert "litemedsam/s16/bottleneck 0.710 0.520 0.830" in found.text
    assert "no history: validation" not in found.text


def test_what_is_told_as_json_holds_figures_gains_and_verdicts():
    held = told([seeded(TAUGHT, 0, gain(0.04, 0.02, 0.06)), seeded(TAUGHT, 1, gain(0.04, 0.02, 0.06)), CONTROL])
    assert held["gains_over_control"]["taught-s0"][KVASIR]["mean"] == 0.04
    recipe = held["recipes"][0]
    assert recipe["runs"] == ["taught-s0", "taught-s1"]
    assert recipe["sets"][KVASIR] == {"seeds": 2, "mdice": pytest.approx(0.81), "sd": pytest.approx(0.01414, abs=1e-4)}
    assert [verdict["word"] for verdict in recipe["verdicts"]] == ["helped"]
    assert held["recipes"][1]["verdicts"] == []


def test_a_new_page_replaces_the_old_one(tmp_path):
    page(tmp_path, TAUGHT)
    assert "taught" not in page(tmp_path, CONTROL).text
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["report.html"]


@pytest.mark.parametrize("objective", ["shuffled", "shuffled+cwd:0.5", "cwd+shuffled:0"])
def test_every_shuffled_objective_is_called_a_control(objective: str) -> None:
    run = replace(TAUGHT, objective=objective)
    assert all("the wrong frames' features" in verdict.sentence for verdict in verdicts(grouped([run])[0]))
