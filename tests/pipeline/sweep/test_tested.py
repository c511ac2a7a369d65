"""What is read out of the test figures in a sweep's run folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from polyp_difom.pipeline.evaluation.done import Job
from polyp_difom.pipeline.evaluation.metrics import write_scores_csv
from polyp_difom.pipeline.evaluation.scoring import ImageScore
from polyp_difom.pipeline.files import sha256_of, write_bytes, write_json
from polyp_difom.pipeline.report.sweep_page import write_sweep_report
from polyp_difom.pipeline.sweep.folder import Record, SweepConfig, SweepFolder
from polyp_difom.pipeline.sweep.results import rows
from polyp_difom.pipeline.sweep.space import Trial, parse_grid
from polyp_difom.pipeline.sweep.tested import Figures, read_tested

KVASIR, ETIS = "kvasir-seg (test)", "etis-larib (test)"
Dice = Callable[[Trial], dict[str, list[float]]]


def record(run: Path, figures: dict[str, list[float]], protocol: str = "per-image") -> None:
    """A trial's evaluation with these Dice values by data set and split."""
    write_bytes(run / "checkpoints" / "best.safetensors", run.name.encode())
    digest = sha256_of(run / "checkpoints" / "best.safetensors")
    about = {"kind": "run", "path": str(run), "name": run.name, "sha256": digest, "header": {}, "parameters": 1}
    write_json(run / "evaluation" / "target.json", about)
    for label, dice in figures.items():
        name, _, split = label.removesuffix(")").partition(" (")
        held = [ImageScore(f"{name}/{n}", name, 8, 8, 0.1, d, d, d, d, 0.1, 1, protocol=protocol) for n, d in enumerate(dice)]
        write_scores_csv(run / "evaluation" / protocol / f"{name}-{split}.csv", held)


def swept(path: Path, figures: Dice, grid: str = "objective=none,multiscale,shuffled seed=0..1", **how: str) -> SweepFolder:
    """A sweep without any training, whose trials have these test figures; multiscale is the best on validation."""
    folder = SweepFolder(path)
    folder.create(SweepConfig.model_validate({"cache": "gone.zarr", "factors": parse_grid(grid)}))
    for trial in folder.config().planned():
        folder.write(Record(number=trial.number, name=trial.name, settings=trial.settings, state="finished"))
        run = folder.run(trial)
        run.path.mkdir(parents=True)
        val = {"multiscale": 0.8, "none": 0.7}.get(trial.settings["objective"], 0.6)
        run.log({"epoch": 1, "val_dice": val, "seconds": 1.0})
        if held := figures(trial):
            record(run.path, held, **how)
    return folder


def found(folder: SweepFolder, protocol: str = "per-image") -> Figures | None:
    return read_tested(folder, rows(folder), folder.config().factors, protocol)


def plain(trial: Trial) -> dict[str, list[float]]:
    """Of ten and two frames: teaching is worth 0.1 on the one set and 0.02 on the other, a second seed 0.02."""
    dice = 0.5 + 0.02 * trial.settings["seed"]
    gain = {"none": (0.0, 0.0), "multiscale": (0.1, 0.02), "shuffled": (-0.1, 0.0)}[trial.settings["objective"]]
    return {KVASIR: [dice + gain[0]] * 10, ETIS: [dice + gain[1] - 0.2] * 2}


def test_recipes_have_mean_and_sd_over_seeds_and_a_plain_mean_over_sets(tmp_path: Path) -> None:
    tests = found(swept(tmp_path / "s", plain))
    assert tests is not None
    assert (tests.trials, tests.finished, tests.sets, tests.averaged) == (6, 6, (ETIS, KVASIR), (ETIS, KVASIR))
    assert [(recipe.label, recipe.control, recipe.seeds) for recipe in tests.recipes] == [
        ("multiscale", False, 2), ("none", True, 2), ("shuffled", False, 2),
    ]  # fmt: skip
    taught = tests.recipes[0]
    assert taught.sets[KVASIR].mean == pytest.approx(0.61)
    assert taught.sets[KVASIR].sd == pytest.approx(0.02 / 2**0.5)
    assert taught.over_sets is not None
    assert taught.over_sets.mean == pytest.approx((0.61 + 0.33) / 2)


def test_differences_pair_the_same_seed_with_the_control_and_with_the_shuffled_form(tmp_path: Path) -> None:
    tests = found(swept(tmp_path / "s", plain))
    assert tests is not None
    held = {(gain.label, gain.against): gain for gain in tests.gains}
    assert set(held) == {("multiscale", "none"), ("multiscale", "shuffled"), ("shuffled", "none")}
    gain = held["multiscale", "none"]
    assert gain.sets[KVASIR].mean == pytest.approx(0.1)
    assert gain.over_sets is not None
    assert gain.over_sets.mean == pytest.approx(0.06)
    assert gain.by_seed == {0: pytest.approx(0.06), 1: pytest.approx(0.06)}
    assert gain.word == "helped"
    assert held["multiscale", "shuffled"].sets[KVASIR].mean == pytest.approx(0.2)
    assert held["shuffled", "none"].word == "harmed"


def test_seeds_of_two_signs_are_mixed_however_narrow_the_interval_over_images(tmp_path: Path) -> None:
    def one_seed_gains(trial: Trial) -> dict[str, list[float]]:
        taught = trial.settings["objective"] == "multiscale"
        return {KVASIR: [0.5 + taught * (0.2 if trial.settings["seed"] else -0.1)] * 9}

    tests = found(swept(tmp_path / "s", one_seed_gains, "objective=none,multiscale seed=0..1"))
    assert tests is not None
    (gain,) = tests.gains
    assert (gain.whole.word, gain.word) == ("helped", "mixed")
    assert gain.over_sets is None


def test_means_over_sets_are_of_sets_that_all_tested_trials_have(tmp_path: Path) -> None:
    def partly(trial: Trial) -> dict[str, list[float]]:
        if trial.settings["objective"] == "shuffled":
            return {}
        return plain(trial) if trial.settings["seed"] else {KVASIR: [0.5] * 10, "kvasir-seg (val)": [0.9]}

    tests = found(swept(tmp_path / "s", partly))
    assert tests is not None
    assert (tests.trials, tests.finished, tests.sets, tests.averaged) == (4, 6, (ETIS, KVASIR), (KVASIR,))
    assert [recipe.over_sets for recipe in tests.recipes] == [None, None]
    assert tests.recipes[0].sets[ETIS].seeds == 1
    assert tests.gains[0].by_seed == {0: pytest.approx(0.0), 1: pytest.approx(0.1)}


def test_figures_of_weights_that_are_no_more_or_of_another_protocol_do_not_count(tmp_path: Path) -> None:
    folder = swept(tmp_path / "s", plain, protocol="pranet")
    assert found(folder) is None
    for run in (folder.path / "runs").iterdir():
        write_bytes(run / "checkpoints" / "best.safetensors", b"trained anew")
    assert found(folder, "pranet") is None


def test_one_common_set_among_several_gives_a_gain_its_interval_and_the_chart_its_title(tmp_path: Path) -> None:
    def partly(trial: Trial) -> dict[str, list[float]]:
        return plain(trial) if trial.settings["seed"] else {KVASIR: plain(trial)[KVASIR]}

    folder = swept(tmp_path / "s", partly, "objective=none,multiscale seed=0..1")
    tests = found(folder)
    assert tests is not None
    (gain,) = tests.gains
    assert gain.on == KVASIR
    assert gain.whole.mean == pytest.approx(0.1)
    assert f"Paired differences in test Dice, {KVASIR}" in write_sweep_report(folder).read_text()


def test_sets_of_which_one_trial_had_other_frames_are_left_out_and_it_is_named(tmp_path: Path) -> None:
    def stray(trial: Trial) -> dict[str, list[float]]:
        return {KVASIR: [0.5] * (3 + (trial.name == "001-none-s1")), ETIS: [0.5] * 2}

    folder = swept(tmp_path / "s", stray)
    tests = found(folder)
    assert tests is not None
    assert (tests.trials, tests.sets, tests.averaged) == (6, (ETIS,), (ETIS,))
    (said,) = tests.left_out
    assert f"{KVASIR} are left out: 001-none-s1 had other frames" in said
    assert said.endswith(f"evaluate {folder.path} --data DIR --split test --protocol per-image --overwrite")
    assert said in write_sweep_report(folder).read_text()


def test_other_files_under_the_same_names_are_other_frames(tmp_path: Path) -> None:
    folder = swept(tmp_path / "s", lambda trial: {KVASIR: [0.5] * 3})
    for number, run in enumerate(sorted((folder.path / "runs").iterdir())):
        Job("per-image", "test", "w", {"kvasir-seg": "new" if number == 4 else "f"}, {}).finish(run / "evaluation", {})
    tests = found(folder)
    assert tests is not None
    assert (tests.trials, tests.sets) == (0, ())
    assert "004-shuffled-s0 had other frames" in tests.left_out[0]
    text = write_sweep_report(folder).read_text()
    assert tests.left_out[0] in text
    assert "Test figures" not in text


def test_figures_on_all_splits_count_only_where_what_was_seen_is_recorded(tmp_path: Path) -> None:
    folder = swept(tmp_path / "s", lambda trial: {"kvasir-seg (all)": [0.5] * 3}, "objective=none,multiscale seed=0")
    Job("per-image", "all", "w", {"kvasir-seg": "f"}, {}).finish(
        folder.path / "runs" / "000-none" / "evaluation", {"kvasir-seg": {"train": 2}}
    )
    tests = found(folder)
    assert tests is not None
    assert (tests.trials, tests.seen) == (1, {"kvasir-seg (all)": 2})
    assert "(all) of 001-multiscale are left out" in tests.left_out[0]


def test_the_page_has_the_test_figures_and_says_what_they_are_for(tmp_path: Path) -> None:
    folder = swept(tmp_path / "s", lambda trial: {} if trial.settings["objective"] == "shuffled" else plain(trial))
    run = folder.path / "runs" / "000-none-s0"
    Job("per-image", "test", "w", {"kvasir-seg": "f"}, {}).finish(run / "evaluation", {"kvasir-seg": {"train": 3}})
    text = write_sweep_report(folder).read_text()
    assert "4 of 6 finished trials are tested, protocol <strong>per-image</strong>" in text
    assert "choice among\nrecipes was made on validation" in text
    assert "trials have seen up to 3 of the frames of kvasir-seg (test)" in text
    assert "plain mean over etis-larib (test) and kvasir-seg (test)" in text
    assert "Paired differences in test Dice, mean of the sets" in text
    assert "multiscale − none" in text
    assert "+6.0" in text


def test_a_page_without_test_figures_has_no_such_section(tmp_path: Path) -> None:
    assert "Test figures" not in write_sweep_report(swept(tmp_path / "s", lambda trial: {})).read_text()
