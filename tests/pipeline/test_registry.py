"""Registries: found by file, refused by name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.objectives.protocol import OBJECTIVES
from polyp_difom.pipeline.registry import Registry
from polyp_difom.pipeline.students.protocol import STUDENTS
from polyp_difom.pipeline.teachers.protocol import TEACHERS


@pytest.fixture
def animals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[str]]:
    """The registry of a package on disk, in which two modules register one animal each."""
    package = tmp_path / "toy_animals"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from polyp_difom.pipeline.registry import Registry\nANIMALS = Registry('animal', 'toy_animals')\n"
    )
    for name in ("otter", "weasel"):
        (package / f"{name}.py").write_text(f"from toy_animals import ANIMALS\nANIMALS.register({name!r})({name.upper()!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module in [name for name in sys.modules if name.startswith("toy_animals")]:
        monkeypatch.delitem(sys.modules, module)
    import toy_animals

    yield toy_animals.ANIMALS
    for module in [name for name in sys.modules if name.startswith("toy_animals")]:
        del sys.modules[module]


def test_a_module_dropped_into_the_package_is_found(animals: Registry[str]) -> None:
    assert animals.names() == ["otter", "weasel"]
    assert animals.get("otter") == "OTTER"


def test_nothing_is_imported_before_the_first_look_up(animals: Registry[str]) -> None:
    assert "toy_animals.otter" not in sys.modules
    animals.names()
    assert "toy_animals.otter" in sys.modules


def test_an_unknown_name_is_answered_with_close_matches(animals: Registry[str]) -> None:
    with pytest.raises(UsageError, match=r"unknown animal 'oter'") as caught:
        animals.get("oter")
    assert caught.value.exit_code == 2
    assert caught.value.details["wanted"] == "one of: otter, weasel"
    assert caught.value.details["next"] == "did you mean otter?"


def test_a_name_like_no_other_is_answered_with_the_list_alone(animals: Registry[str]) -> None:
    with pytest.raises(UsageError) as caught:
        animals.get("qqq")
    assert caught.value.details["next"] is None


def test_names_that_stand_for_no_entry_are_listed_too() -> None:
    with pytest.raises(UsageError) as caught:
        OBJECTIVES.get("aut")
    assert "auto" in str(caught.value.details["wanted"])
    assert caught.value.details["next"] == "did you mean auto?"


def test_a_name_cannot_be_taken_twice(animals: Registry[str]) -> None:
    animals.names()
    with pytest.raises(RuntimeError, match="registered twice"):
        animals.register("otter")("ANOTHER")


def test_the_families_that_the_package_ships_are_registered() -> None:
    assert {"dinov2", "litemedsam", "medsam", "sam"} <= set(TEACHERS.names())
    assert {"unet"} <= set(STUDENTS.names())
    assert {"none", "multiscale", "shuffled", "paper"} <= set(OBJECTIVES.names())
