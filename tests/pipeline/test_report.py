"""The page: complete, self-contained, escaped, and honest about a teacher that did not help."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyp_difom.pipeline.metrics import PairedDifference, SizeBand, Summary
from polyp_difom.pipeline.report import GalleryItem, RunReport, verdicts, write_report

VOID = {"meta", "img", "br", "line", "circle", "polyline"}


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
            self.text = f"{self.text} {' '.join(data.split())}"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def summary(dataset: str, mdice: float, protocol: str = "per-image") -> Summary:
    bands = (SizeBand("small", 10, mdice - 0.2), SizeBand("medium", 70, mdice), SizeBand("large", 0, None))
    return Summary(protocol, dataset, 80, mdice, mdice - 0.08, 0.9, 0.85, 0.04, (mdice - 0.03, mdice + 0.03), bands)


CONTROL = RunReport(
    "control", "unet", "none", (), 0, 24, 7_850_000, [summary("kvasir", 0.8123), summary("etis", 0.5)],
    curve=[{"epoch": 1, "val_dice": 0.4}, {"epoch": 2, "val_dice": 0.7}],
)  # fmt: skip
TAUGHT = RunReport(
    "taught", "unet", "multiscale", ("litemedsam",), 0, 24, 7_850_000, [summary("kvasir", 0.8567), summary("etis", 0.49)],
    differences={
        "kvasir": PairedDifference(80, 0.0444, (0.021, 0.065), 0.7),
        "etis": PairedDifference(80, 0.01, (-0.03, 0.05), 0.55),
    },
    gallery=[GalleryItem("worst: a, Dice 0.100", np.full((300, 1200, 3), 180, np.uint8)),
             GalleryItem("best: b, Dice 0.990", np.full((90, 120, 3), 60, np.uint8))],
    curve=[{"epoch": 1, "val_dice": 0.5, "seconds": 3.1}, {"epoch": 2, "val_dice": 0.8}],
)  # fmt: skip


def page(tmp_path: Path, *runs: RunReport, title: str = "Two runs", provenance: dict[str, str] | None = None) -> Page:
    write_report(tmp_path / "out" / "report.html", list(runs), title, provenance or {"store signature": "abc123"})
    return Page(tmp_path / "out" / "report.html")


def test_the_page_holds_figures_intervals_origins_and_the_warning(tmp_path):
    text = page(tmp_path, TAUGHT, CONTROL).text
    figures = ("0.857 [0.827, 0.887]", "0.812", "mIoU 0.777", "80 frames", "7.85 M")
    for piece in (*figures, "litemedsam", "none (control)", "abc123", "protocol per-image", "not a medical device"):
        assert piece in text
    assert text.count("not scored") == 0


def test_the_page_asks_nothing_of_the_network(tmp_path):
    found = page(tmp_path, TAUGHT, CONTROL)
    addresses = [value for _, attributes in found.elements for name, value in attributes.items() if name in ("src", "href")]
    assert len(addresses) == 2
    assert all(address.startswith("data:image/jpeg;base64,") for address in addresses)
    assert not re.search(r"@import|url\(|https?://", found.source)
    assert not found.all("script") + found.all("link") + found.all("iframe")


def test_pictures_keep_the_order_given_and_are_at_most_640_wide(tmp_path):
    images = page(tmp_path, TAUGHT).all("img")
    pictures = [Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))) for image in images]
    assert [image["alt"] for image in images] == ["worst: a, Dice 0.100", "best: b, Dice 0.990"]
    assert [picture.size for picture in pictures] == [(640, 160), (120, 90)]
    assert [np.asarray(picture)[0, 0, 0] for picture in pictures] == pytest.approx([180, 60], abs=2)


def test_a_gain_is_claimed_only_where_the_whole_interval_is_above_zero():
    (helped, first), (neither, second) = verdicts(TAUGHT)
    assert (helped, neither) == ("helped", "no gain")
    assert "On kvasir, the teacher litemedsam helped: +4.4 points of Dice (95 % interval +2.1 to +6.5)" in first
    assert "70% of 80 frames" in first
    assert "On etis, the teacher litemedsam did not help: +1.0 points" in second
    assert "cannot be told from zero" in second


def test_a_teacher_that_harms_is_said_to_harm(tmp_path):
    run = replace(TAUGHT, differences={"kvasir": PairedDifference(80, -0.02, (-0.03, -0.01), 0.2)})
    assert "did not help but harm: −2.0 points" in page(tmp_path, run, CONTROL).text


def test_a_set_without_a_control_is_named_as_unproven():
    (verdict, sentence), = verdicts(replace(TAUGHT, differences={}))  # fmt: skip
    assert verdict == "unknown"
    assert "no control to compare with" in sentence
    partly = verdicts(replace(TAUGHT, differences={"kvasir": TAUGHT.differences["kvasir"]}))
    assert [verdict for verdict, _ in partly] == ["helped", "unknown"]
    assert partly[1][1].startswith("On etis, ")


def test_a_control_gets_no_verdict(tmp_path):
    assert "Did the teacher help" not in page(tmp_path, CONTROL).text


def test_all_text_stays_text(tmp_path):
    evil = "<script>alert(1)</script>\"'&{{ 7 * 7 }}"
    run = replace(
        TAUGHT,
        name=evil, student=evil, objective=evil, teachers=(evil,), summaries=[summary(evil, 0.5)],
        differences={evil: TAUGHT.differences["kvasir"]}, gallery=[GalleryItem(evil, np.zeros((4, 4, 3), np.uint8))],
    )  # fmt: skip
    found = page(tmp_path, run, title=evil, provenance={evil: evil})
    assert not found.all("script")
    assert found.text.count("alert(1)") >= 10
    assert "{{ 7 * 7 }}" in found.text
    assert found.all("img")[0]["alt"] == evil


def test_protocols_get_tables_of_their_own_and_a_gap_is_shown(tmp_path):
    strict = replace(CONTROL, summaries=[summary("kvasir", 0.81), summary("kvasir", 0.83, "pranet")])
    found = page(tmp_path, TAUGHT, strict)
    assert [found.text.count(f"protocol {name}") for name in ("per-image", "pranet", "pooled-6")] == [1, 1, 0]
    assert found.text.count("not scored") == 2  # the strict run on etis, the taught run under pranet


def test_learning_curves_run_over_the_chart_with_the_control_beneath(tmp_path):
    found = page(tmp_path, TAUGHT, CONTROL, replace(CONTROL, name="no history", curve=[]))
    assert len(found.all("svg")) == 2
    lines = [(attributes.get("class"), attributes["points"]) for attributes in found.all("polyline")]
    control = "160.0,90.0 320.0,45.0"
    assert lines == [("rival", control), (None, "160.0,75.0 320.0,30.0"), (None, control)]
    assert "taught: best 0.800 in epoch 2" in found.text


def test_a_new_page_replaces_the_old_one(tmp_path):
    page(tmp_path, TAUGHT)
    assert "taught" not in page(tmp_path, CONTROL).text
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["report.html"]
