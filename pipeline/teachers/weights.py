"""Weights from a local path or a URL with a digest; never unpickled as code, never kept unless the digest holds."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from polyp_difom.cache.errors import MissingDependencyError, UsageError
from polyp_difom.pipeline.files import sha256_of
from polyp_difom.pipeline.state_dicts import read_state

_BLOCK = 1 << 20


def weights_home() -> Path:
    """Folder of downloaded weights: $POLYP_DIFOM_WEIGHTS, else ~/.cache/polyp-difom."""
    return Path(os.environ.get("POLYP_DIFOM_WEIGHTS") or Path.home() / ".cache" / "polyp-difom")


def fetch(source: str, *, teacher: str, licence: str = "unknown", say: Callable[[str], None] = lambda text: None) -> Path:
    """Local file for `source`: a path, or "https://...#sha256=HEX" (downloaded once, verified, renamed into place).

    Before a download, `say` is told its size and licence.

    Raises:
        UsageError: a URL without a digest. MissingDependencyError: no such file, no network, or a wrong digest.
    """
    if "://" not in source:
        path = Path(source).expanduser()
        if path.is_file():
            return path
        raise MissingDependencyError(
            f"no weights for teacher {teacher!r}", where=path, got="no such file", wanted="a checkpoint file",
            remedy=f"give --weights {teacher}=PATH or --weights {teacher}=https://...#sha256=HEX",
        )  # fmt: skip
    url, _, digest = source.partition("#sha256=")
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise UsageError(
            f"the weights URL of teacher {teacher!r} has no digest",
            where=url,
            wanted=f"{url}#sha256=<64 hex digits>",
            remedy=f"give --weights '{teacher}={url}#sha256=HEX', HEX as `sha256sum` prints it of a file that you trust",
        )
    target = _target(url, digest)
    if not target.is_file():
        _download(url, digest, target, teacher, lambda size: say(f"downloading {url}: {size}, licence {licence}"))
    elif (actual := sha256_of(target)) != digest:
        raise MissingDependencyError(
            f"the downloaded weights of teacher {teacher!r} are damaged", where=target, got=f"sha256 {actual}",
            wanted=f"sha256 {digest}", remedy="delete the file; it is downloaded again",
        )  # fmt: skip
    return target


def downloaded(source: str) -> Path | None:
    """Where the weights of a URL with digest lie, None if they were never downloaded."""
    url, _, digest = source.partition("#sha256=")
    target = _target(url, digest)
    return target if target.is_file() else None


def megabytes(size: int | str | None) -> str:
    """Bytes in words: "358 MiB"; "size unknown" where a server does not say."""
    return f"{int(size) / 2**20:,.0f} MiB" if size else "size unknown"


def _target(url: str, digest: str) -> Path:
    return weights_home() / f"{digest[:16]}-{Path(url).name}"


def _download(url: str, digest: str, target: Path, teacher: str, announce: Callable[[str], None]) -> None:
    if not url.startswith("https://"):
        remedy = f"download it yourself, then give --weights {teacher}=PATH"
        raise UsageError(f"the weights URL of teacher {teacher!r} is not https", where=url, remedy=remedy)
    target.parent.mkdir(parents=True, exist_ok=True)
    actual = hashlib.sha256()
    with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".partial", delete=False) as partial:
        try:
            with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310 - https only, digest checked below
                announce(megabytes(response.headers.get("Content-Length")))
                while block := response.read(_BLOCK):
                    actual.update(block)
                    partial.write(block)
            partial.close()
            if actual.hexdigest() != digest:
                raise MissingDependencyError(
                    f"downloaded weights of teacher {teacher!r} are not the expected ones",
                    where=url, got=f"sha256 {actual.hexdigest()}", wanted=f"sha256 {digest}",
                    remedy="compare the digest with its publisher's; none of the file was kept",
                )  # fmt: skip
            shutil.move(partial.name, target)
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise MissingDependencyError(
                f"the weights of teacher {teacher!r} are not reachable", where=url, got=error,
                remedy=f"download them elsewhere, then give --weights {teacher}=PATH",
            ) from error  # fmt: skip
        finally:
            Path(partial.name).unlink(missing_ok=True)


def load_state(path: Path, *, teacher: str) -> dict[str, Tensor]:
    """The state dict of a teacher's checkpoint, see `read_state`.

    Raises:
        MissingDependencyError: not such a file, or not a state dict.
    """
    return read_state(path, f"the checkpoint of teacher {teacher!r}", f"give --weights {teacher}=PATH of another file")


def load_into(module: nn.Module, state: dict[str, Tensor], path: Path, *, teacher: str) -> None:
    """Every weight of `module` from the state dict that was read from `path`.

    Raises:
        MissingDependencyError: names or shapes are another model's.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise MissingDependencyError(
            f"the checkpoint does not fit teacher {teacher!r}", where=path, got=str(error).splitlines()[1].strip()[:160],
            wanted=f"the weights of {teacher}", remedy=f"give --weights {teacher}=PATH of the right checkpoint",
        ) from error  # fmt: skip
