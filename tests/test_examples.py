"""Every Python example of the documentation runs, in a folder like the one that `make demo` leaves."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import api

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def examples() -> list[object]:
    """The Python blocks of all pages, each by page and line."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, match.start()) + 1
            found.append(pytest.param(match[1], id=f"{page.name}:{line}"))
    return found


@pytest.fixture(scope="module")
def demo(store: FeatureStore, finished_run: Path, frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples name: a store, two runs, two data sets."""
    folder = tmp_path_factory.mktemp("examples")
    assert store.location.path is not None
    shutil.copytree(store.location.path, folder / "cache" / "demo.zarr")
    for name in ("demo-distilled", "demo-control"):
        shutil.copytree(finished_run, folder / "runs" / name)
    for name in ("demo", "demo-test"):
        shutil.copytree(frames, folder / "data" / name)
    return folder


@pytest.mark.parametrize("source", examples())
def test_an_example_runs_as_it_stands_and_prints_something(
    source: str, demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(demo)
    exec(compile(source, "example", "exec"), {"__name__": "__main__"})  # noqa: S102
    assert capsys.readouterr().out.strip()


def test_the_page_of_the_python_interface_has_examples() -> None:
    assert sum(str(example.id).startswith("api.md") for example in examples()) >= 4  # type: ignore[attr-defined]


def test_every_name_of_the_interface_is_there() -> None:
    for name in api.__all__:
        assert callable(getattr(api, name)), name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = api.no_such_name


def test_importing_the_interface_does_not_import_torch() -> None:
    program = "import sys; import polyp_difom.pipeline.api; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
