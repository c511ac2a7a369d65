"""A sweep's page: complete, self-contained, escaped, and careful about what validation figures can show."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.files import write_json
from polyp_difom.pipeline.report.sweep_page import write_sweep_report
from polyp_difom.pipeline.sweep.folder import Record, SweepConfig, SweepFolder
from polyp_difom.pipeline.sweep.results import reason, rows
from polyp_difom.pipeline.sweep.space import parse_grid

GRID = "student=unet,light objective=none,multiscale seed=0..2"
TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\nRuntimeError: <script>alert(1)</script>'


def swept(
    path: Path, grid: str = GRID, *, gain: float = 0.03, finished: int = 99, errors: dict[int, str] | None = None, **more: Any
) -> SweepFolder:
    """A sweep whose trials have figures without any training: taught ones are better by `gain`, on average."""
    folder = SweepFolder(path)
    folder.create(SweepConfig(**{"cache": "gone.zarr", "device": "cpu", **more}, factors=parse_grid(grid)))
    write_json(
        folder.students,
        {"unet": {"parameters": 7_850_000, "latency_ms": 40.2}, "light": {"parameters": 3_450_000, "latency_ms": 12.3}},
    )
    for trial in folder.config().planned()[:finished]:
        error = (errors or {}).get(trial.number)
        folder.write(
            Record(
                number=trial.number,
                name=trial.name,
                settings=trial.settings,
                state="failed" if error else "finished",
                error=error,
            )
        )
        taught = trial.settings.get("objective") == "multiscale"
        best = 0.7 + 0.05 * (trial.settings.get("student") == "light") + gain * taught + 0.001 * (trial.number * 7 % 5)
        folder.run(trial).path.mkdir(parents=True)
        for epoch in (1, 2):
            folder.run(trial).log({"epoch": epoch, "val_dice": best * epoch / 2, "seconds": 1.0})
    return folder


class Page(HTMLParser):
    """The page's tags and text; fails where tags do not nest."""

    def __init__(self, path: Path):
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text = re.sub(r"\s+", " ", f"{self.text} {data}")


def page(folder: SweepFolder) -> Page:
    return Page(write_sweep_report(folder))


def test_the_page_tells_gain_recipes_importance_front_and_what_to_type(tmp_path: Path) -> None:
    folder = swept(tmp_path / "abc")
    found = page(folder)
    assert "12 of 12 trials finished" in found.text
    assert re.search(
        r"multiscale beats none: \+[23]\.\d points of validation Dice over 6 pairs \(95 % interval \+\d", found.text
    )
    assert "1. light, multiscale" in found.text
    assert "Student, beside unet" in found.text
    assert "latency on cpu. Nothing beats 1: light, multiscale." in found.text
    assert "share of the variance explained" in found.text
    assert "optimistic" in found.text
    best = max(rows(folder), key=lambda row: row.val_dice or 0)
    control = next(row for row in rows(folder) if row.settings == {**best.settings, "objective": "none"})
    assert f"polyp-difom evaluate {folder.path} --data DIR polyp-difom sweep report {folder.path}" in found.text
    assert f"polyp-difom report {folder.path}/runs/{best.name} {folder.path}/runs/{control.name}" in found.text
    assert "preliminary" not in found.text


def test_nothing_is_fetched_and_nothing_is_executed(tmp_path: Path) -> None:
    found = page(swept(tmp_path / "a<b>&c", errors={3: TRACEBACK}))
    assert not found.tags & {"script", "link", "img", "iframe", "b"}
    assert not re.search(r"https?://|@import|url\(", found.source)
    assert "Sweep a<b>&c" in found.text


def test_a_failed_trial_is_listed_with_what_it_died_of(tmp_path: Path) -> None:
    folder = swept(tmp_path / "abc", errors={3: TRACEBACK, 5: "out of memory\n  where:  cuda"})
    found = page(folder)
    assert "10 of 12 trials finished, 2 failed" in found.text
    assert [reason(row) for row in rows(folder) if row.error] == ["RuntimeError: <script>alert(1)</script>", "out of memory"]
    assert "RuntimeError: <script>alert(1)</script>" in found.text
    assert "over 4 pairs" in found.text


def test_a_sweep_without_a_finished_trial_still_has_a_page(tmp_path: Path) -> None:
    found = page(swept(tmp_path / "abc", finished=0))
    assert "0 of 12 trials finished, 12 waiting" in found.text
    assert "No trial has finished yet." in found.text
    assert "preliminary" in found.text
    assert "Test it" not in found.text


@pytest.mark.parametrize(
    ("grid", "gain", "sentence"),
    [
        (GRID, 0.0, "No difference can be shown between multiscale and none: "),
        (GRID, -0.05, "multiscale does harm: −"),
        ("objective=none,multiscale seed=0", 0.2, "Too few pairs to tell multiscale from none: +20.2 points of validation Dice over 1 pair;"),
        ("objective=multiscale,paper seed=0..2", 0.2, "There is no control in this sweep"),
        ("objective=none,paper seed=0..2", 0.2, "its control needs affine=false latents=true"),
        ("objective=none,shuffled,multiscale seed=0..2", 0.1, "multiscale beats shuffled, so it matters what the teacher saw: +"),
        ("objective=none,shuffled:0+cwd,multiscale,cwd seed=0..2", 0.0, "cwd is not shown to differ from shuffled:0+cwd: a gain may"),
        ("student=unet,light", 0.1, "Sweep with objective=none,multiscale."),
    ],
)  # fmt: skip
def test_the_verdict_is_plain(tmp_path: Path, grid: str, gain: float, sentence: str) -> None:
    assert sentence in page(swept(tmp_path / "abc", grid, gain=gain)).text


def test_a_guided_sweep_is_over_when_all_trials_that_were_asked_for_have_ended(tmp_path: Path) -> None:
    folder = swept(tmp_path / "abc", sampler="tpe", trials=2)
    folder.write(Record(number=0, name="000", settings={"student": "unet"}, state="pruned"))
    assert "0 of 2 trials finished, 1 pruned. The sweep is not over" in page(folder).text
    folder.write(Record(number=1, name="001", settings={"student": "light"}, state="failed", error="diverged"))
    assert "not over" not in page(folder).text


def test_drawn_trials_are_to_be_confirmed_by_a_grid_with_controls(tmp_path: Path) -> None:
    folder = swept(tmp_path / "abc", "objective=none,multiscale learning-rate=1e-4..1e-2", sampler="random", trials=8)
    found = page(folder)
    assert "confirm the best values with a grid" in found.text
    words = re.search(r"--grid '(.*?)'", found.text)
    assert words is not None
    factors = parse_grid(words[1])
    assert factors["objective"] == ("none", "multiscale")
    assert factors["seed"] == (0, 1, 2, 3, 4)
    best = max(rows(folder), key=lambda row: row.val_dice or 0)
    assert factors["learning_rate"] == (best.settings["learning_rate"],)


def test_the_control_of_paper_is_proposed_as_paper_trains(tmp_path: Path) -> None:
    words = re.search(r"--grid '(.*?)'", page(swept(tmp_path / "abc", "objective=multiscale,paper seed=0", gain=-0.1)).text)
    assert words is not None
    factors = parse_grid(words[1])
    assert (factors["objective"], factors["affine"], factors["latents"]) == (("none", "paper"), (False,), (True,))


def test_the_page_names_the_stores_teachers_with_licence_and_doubts(tmp_path: Path, store: FeatureStore) -> None:
    signature = store.manifest.signature()
    known = page(swept(tmp_path / "known", cache=str(store.location), signature=signature)).text
    assert signature in known
    assert f"dinov2:small (licence {store.manifest.teachers[0].licence}" in known
    other = page(swept(tmp_path / "other", cache=str(store.location), signature="0" * 64)).text
    assert "another store lies there now" in other
    assert "the store cannot be read now: no feature store here" in page(swept(tmp_path / "gone")).text


@pytest.mark.parametrize(
    ("grid", "finished", "warned"),
    [
        ("objective=none,multiscale teachers=a,c", 99, ["a", "c"]),
        ("objective=none,multiscale teachers=a+b", 99, ["a", "b"]),
        ("objective=none,multiscale", 99, ["a", "b", "c"]),
        ("objective=none,multiscale teachers=a,c", 2, ["a"]),  # the trial of c has not begun
        ("objective=none seed=0..1", 99, []),
    ],
)
def test_only_teachers_that_a_trial_used_are_warned_of(
    grid: str, finished: int, warned: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers = [{"name": name, "contamination": "likely"} for name in "abc"]
    monkeypatch.setattr("polyp_difom.pipeline.report.sweep_page._store_facts", lambda *_: ({}, teachers))
    found = page(swept(tmp_path / "abc", grid, finished=finished)).text
    assert re.findall(r"Caution\. (\w): its own training probably held polyp frames", found) == warned


def test_many_recipes_and_trials_are_folded_and_the_page_goes_where_it_is_told(tmp_path: Path) -> None:
    folder = swept(tmp_path / "abc", "distill-weight=1..30 objective=multiscale seed=0..1")
    out = write_sweep_report(folder, tmp_path / "elsewhere" / "page.html")
    assert out == tmp_path / "elsewhere" / "page.html"
    found = Page(out)
    assert "10 more" in found.text
    assert "60 trials" in found.text
    assert not (folder.path / "report.html").exists()


def test_only_the_shuffled_form_of_an_objective_is_its_control(tmp_path: Path) -> None:
    found = page(swept(tmp_path / "abc", "objective=none,shuffled,shuffled+cwd:0.5,cwd,multiscale+cwd:0.5 seed=0..2"))
    assert "multiscale+cwd:0.5 is not shown to differ from shuffled+cwd:0.5" in found.text
    assert "from shuffled:" not in found.text
