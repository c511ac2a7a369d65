"""What docs/security.md promises is tested where it says."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_promise_names_tests_and_make_targets_that_exist() -> None:
    text = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    promises = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| promise |")]
    assert len(promises) > 15
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for promise in promises:
        named = re.findall(r"`(tests/[^`]*|make [a-z-]+)`", promise.split(" | ")[-1])
        assert named, promise
        for name in named:
            assert (ROOT / name).is_file() or name.removeprefix("make ") in targets, name
