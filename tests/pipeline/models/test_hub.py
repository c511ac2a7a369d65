"""Hub folders: what a stranger's may hold, what is fetched, what is pushed. The hub itself is faked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, LocalTokenNotFoundError
from safetensors.torch import load_file, save_file

from polyp_difom.cache.errors import MissingDependencyError, RunError, UsageError
from polyp_difom.pipeline.export.exporting import export
from polyp_difom.pipeline.models import hub
from polyp_difom.pipeline.models.hub import from_pretrained, load_hub_folder, pulled, push_to_hub
from polyp_difom.pipeline.models.loading import load_model


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    return export(run, "hub-folder", out=tmp_path / "shared").path


@pytest.fixture
def fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Calls to the hub, which answers with `folder`."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def answer(name: str, **options: Any) -> str:
        calls.append((name, options))
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", answer)
    return calls


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))


def test_a_folder_answers_like_its_run(folder: Path, run: Path, odd_pictures: list[np.ndarray]) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    model = from_pretrained(folder, device="cpu")
    assert model.info.kind == "hub-folder"
    np.testing.assert_array_equal(model.probability(odd_pictures[0]), load_model(run, "cpu").probability(odd_pictures[0]))
    assert type(load_model(folder, "cpu")) is type(model)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda config: config.update(code="import os"), "code: extra inputs"),
        (lambda config: config.update(frame_size=10**9), "frame_size"),
        (lambda config: config["header"].pop("student"), "header.student: field required"),
        (lambda config: config["header"].update(student=["unet"]), "header.student: input should be a valid string"),
        (lambda config: config["header"].update(student="unett:8"), "cannot be built"),
        (lambda config: config["header"].update(provenance={"datasets": [{}]}), r"provenance\.datasets\.0\.name"),
        (lambda config: config["header"].update(student="unet:8"), "not those of the student"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(edit: Callable, said: str, folder: Path) -> None:
    change(folder, edit)
    with pytest.raises(RunError, match=said):
        load_hub_folder(folder, "cpu")


def test_no_code_in_a_folder_is_run(folder: Path, tmp_path: Path) -> None:
    for name in ("modeling.py", "unet.py", "__init__.py", "conftest.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    from_pretrained(folder, device="cpu")
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_not_opened(folder: Path) -> None:
    torch.save({"a": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(RunError, match=r"not a safetensors file"):
        load_hub_folder(folder, "cpu")


def test_weights_of_another_key_or_shape_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "more": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(RunError, match="not those of the student"):
        load_hub_folder(folder, "cpu")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_too_large_is_not_read(name: str, folder: Path) -> None:
    with (folder / name).open("r+b") as file:
        file.truncate(hub.LARGEST[name] + 1)
    with pytest.raises(RunError, match="larger than any of ours"):
        load_hub_folder(folder, "cpu")


def test_a_config_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match="cannot be read"):
        load_hub_folder(folder, "cpu")


@pytest.mark.parametrize(("text", "revision"), [("org/name", None), ("org/name@v1", "v1")])
def test_exactly_three_files_are_fetched(text: str, revision: str | None, folder: Path, fetched: list) -> None:
    assert pulled(text) == folder
    assert load_model(f"hf:{text}", "cpu").info.kind == "hub-folder"
    assert fetched[0] == fetched[1]
    name, options = fetched[0]
    assert (name, options["revision"]) == ("org/name", revision)
    assert sorted(options["allow_patterns"]) == ["README.md", "config.json", "model.safetensors"]


def test_a_revision_may_be_given_apart(fetched: list) -> None:
    from_pretrained("org/name", revision="abc", device="cpu")
    assert fetched[0][1]["revision"] == "abc"


@pytest.mark.parametrize("text", ["name", "a/b/c", "", "org/na me", "../up", "org/..", "@v1"])
def test_what_is_no_name_never_reaches_the_hub(text: str, fetched: list) -> None:
    with pytest.raises(UsageError, match="ORG/NAME"):
        pulled(text)
    assert fetched == []


def test_a_place_without_a_network_is_refused(folder: Path, fetched: list) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"no model\.safetensors"):
        pulled("org/name")


def test_offline_is_respected_and_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tests run with the hub switched off: the real call must end as a missing dependency, at once."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="give the folder"):
        pulled("polyp-difom-tests/no-such-network")


def test_a_hub_that_lacks_the_files_is_a_missing_dependency(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("nothing cached")

    monkeypatch.setattr(hub, "snapshot_download", missing)
    with pytest.raises(MissingDependencyError, match="nothing cached"):
        pulled("org/name")


class FakeApi:
    calls: list[tuple[str, tuple, dict[str, Any]]] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Callable[..., str]:
        def call(*args: Any, **options: Any) -> str:
            self.calls.append((name, args, options))
            return "https://hub/org/name"

        return call


def test_a_push_makes_a_private_place_and_sends_three_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "calls", [])
    (folder / "secret.txt").write_text("mine")
    assert push_to_hub(folder, "org/name") == "https://hub/org/name"
    (made, sent) = FakeApi.calls
    assert made == ("create_repo", ("org/name",), {"private": True, "exist_ok": True})
    assert sent[0] == "upload_folder"
    assert sorted(sent[2]["allow_patterns"]) == ["README.md", "config.json", "model.safetensors"]


def test_a_folder_that_cannot_be_loaded_is_not_pushed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "calls", [])
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(RunError):
        push_to_hub(folder, "org/name")
    assert FakeApi.calls == []


def test_a_push_without_a_token_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Locked:
        def create_repo(self, *_: Any, **__: Any) -> None:
            raise LocalTokenNotFoundError("no token")

    monkeypatch.setattr(hub, "HfApi", Locked)
    with pytest.raises(MissingDependencyError, match="HF_TOKEN"):
        push_to_hub(folder, "org/name")
