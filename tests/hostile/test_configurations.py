"""Configurations in YAML: data of bounded size, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from polyp_difom.cli.main import app

from .corpus import LAUGHS


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "[" * 20_000,
        "seed: 2001-99-99",
        "seed: !!python/object/apply:os.mkdir [executed]",
        "a: b: c",
        "\0",
        "x" * (2 << 20),
        "",
    ],
    ids=["laughs", "deep", "date", "python", "colons", "zero", "large", "empty"],
)
def test_a_hostile_configuration_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(text)
    result = CliRunner().invoke(app, ["distill", "--config", "run.yaml"])
    assert (result.exit_code, type(result.exception)) == (2, SystemExit), result.exception
    assert "run.yaml" in result.stderr
    assert len(result.stderr) < 2000
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
