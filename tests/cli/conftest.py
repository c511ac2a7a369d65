"""Runs the command line in this process, and commands that extract and distil in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from polyp_difom.cli.main import app

Cli = Callable[..., Result]


@pytest.fixture
def cli() -> Cli:
    """`cli("extract", "-d", path)`: the result, with stdout and stderr apart."""
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def refused(cli: Cli) -> Callable[..., str]:
    """`refused(code, *words)`: runs, wants that exit code and a plain message; returns stderr."""

    def run(code: int, *words: object) -> str:
        result = cli(*words)
        assert result.exit_code == code, (result.exit_code, result.stderr, result.exception)
        assert isinstance(result.exception, SystemExit)
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
        assert result.stderr.strip()
        return result.stderr

    return run


@pytest.fixture(scope="session")
def small(tiny_teacher: Path) -> list[str]:
    """Options under which `extract` takes a second."""
    weights = ["--teachers", "dinov2:small", "--weights", f"dinov2:small={tiny_teacher}"]
    return [*weights, "--size", "64", "--views", "2", "--channels", "16", "--device", "cpu", "--precision", "float32"]


@pytest.fixture(scope="session")
def light() -> list[str]:
    """Options under which `distill` takes a second."""
    return ["--student", "unet:4", "--epochs", "2", "--batch-size", "4", "--device", "cpu", "--precision", "float32"]
