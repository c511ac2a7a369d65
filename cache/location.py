"""Where a store lives: a local folder or an fsspec URL, and the few byte operations that differ between the two."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore

from polyp_difom.cache.errors import CacheError, MissingDependencyError, PolypDifomError, UsageError, first_line

S3_CLIENT = {"connect_timeout": 5, "read_timeout": 15, "retries": {"total_max_attempts": 2, "mode": "standard"}}
"""Of botocore, twice around which s3fs tries: an endpoint that never answers is given up after a minute."""
S3_TRIES = 2
CLIENTS = ("aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google")
"""Packages below fsspec's file systems, whose exceptions are no OSErrors."""


REACH = "check the URL, the network and the credentials (s3: AWS_PROFILE or AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL)"


class UnreachableError(CacheError):
    """A store at a URL that did not answer; what it holds is not known."""


@dataclass(frozen=True)
class Location:
    """A store's place. Holds text only, so it crosses forks and pickles; file systems are looked up when they are needed."""

    text: str

    @classmethod
    def parse(cls, path: str | os.PathLike[str]) -> Location:
        """From a local path, a file:// URL (taken as local) or any other fsspec URL."""
        text = os.fspath(path).removeprefix("file://")
        return cls(text.rstrip("/") if "://" in text else os.path.abspath(os.path.expanduser(text)))

    @property
    def path(self) -> Path | None:
        """The local folder; None for a URL."""
        return None if "://" in self.text else Path(self.text)

    def __str__(self) -> str:
        return self.text

    def file(self, key: str) -> str:
        """Path or URL of the file that holds `key`, for messages."""
        return f"{self.text}/{key}"

    def filesystem(self) -> tuple[fsspec.AbstractFileSystem, str]:
        """The file system and the store's root on it.

        Raises:
            MissingDependencyError: the package that serves this kind of URL is not installed.
            UsageError: a URL of a kind that fsspec does not know.
        """
        if self.path is not None:
            return fsspec.filesystem("file"), self.text
        try:
            filesystem, root = fsspec.core.url_to_fs(self.text, **self._options())
        except ImportError as error:
            remedy = "pip install 'polyp-difom[s3]'" if self.text.startswith("s3") else None
            raise MissingDependencyError(
                "this kind of URL needs another package", where=self, got=error, remedy=remedy
            ) from error
        except ValueError as error:
            raise UsageError(
                "unknown kind of store URL", where=self, got=error, wanted="a local path or an fsspec URL"
            ) from error
        return self._impatient(filesystem), root

    def zarr_store(self, *, read_only: bool) -> Store:
        """Zarr's view of the place."""
        if self.path is not None:
            return LocalStore(self.path, read_only=read_only)
        self.filesystem()
        store = FsspecStore.from_url(self.text, storage_options=self._options(), read_only=read_only)
        self._impatient(store.fs)
        return store

    def _impatient(self, filesystem: fsspec.AbstractFileSystem) -> fsspec.AbstractFileSystem:
        if self._is_s3:
            filesystem.retries = S3_TRIES
        return filesystem

    @property
    def _is_s3(self) -> bool:
        return self.text.startswith(("s3://", "s3a://"))

    def _options(self) -> dict[str, Any]:
        """For s3fs: bounded waiting, over which the user's own fsspec settings win, and no memory of old listings."""
        if not self._is_s3:
            return {}
        own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        return {"use_listings_cache": False, "config_kwargs": {**S3_CLIENT, **own}}

    def is_vacant(self) -> bool:
        """Nothing is there, or an empty folder."""
        filesystem, root = self.filesystem()
        return not filesystem.exists(root) or (filesystem.isdir(root) and not filesystem.ls(root))

    def read_bytes(self, key: str) -> bytes:
        """The whole file that holds `key`; FileNotFoundError where there is none."""
        filesystem, root = self.filesystem()
        return filesystem.cat_file(f"{root}/{key}")

    def holds(self, key: str) -> bool:
        """There is a file that holds `key`."""
        filesystem, root = self.filesystem()
        return bool(filesystem.exists(f"{root}/{key}"))

    def delete(self, key: str) -> None:
        """Removes the file that holds `key`, if there is one."""
        filesystem, root = self.filesystem()
        if filesystem.exists(f"{root}/{key}"):
            filesystem.rm_file(f"{root}/{key}")

    def flush(self, key: str) -> None:
        """Forces a local file to the disk, so that no later file can outlive it in a power cut."""
        if self.path is not None:
            with open(self.path / key, "rb") as stream:
                os.fsync(stream.fileno())

    def sizes(self) -> dict[str, int]:
        """Bytes of every file, by key."""
        filesystem, root = self.filesystem()
        found = filesystem.find(root, detail=True)
        return {name.removeprefix(f"{root}/"): int(entry["size"]) for name, entry in found.items()}


@contextmanager
def explained(doing: str, location: Location) -> Iterator[None]:
    """Turns refusals (full disk, no permission, no network, ...) into a CacheError that quotes them.

    Raises:
        UnreachableError: a URL's host that cannot be reached, or credentials that cannot be found.
        CacheError: anything else that the operating system or the object store refuses.
    """
    try:
        yield
    except PolypDifomError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not _is_of_client(error):
            raise
        remote = location.path is None
        silent = remote and (_is_of_client(error) or isinstance(error, ConnectionError | TimeoutError))
        raise (UnreachableError if silent else CacheError)(
            f"{doing} failed",
            where=getattr(error, "filename", None) or location,
            got=getattr(error, "strerror", None) or first_line(error),
            remedy=REACH if remote else "check the path, its permissions and `df -h`",
        ) from error


def _is_of_client(error: Exception) -> bool:
    return any(kind.__module__.partition(".")[0] in CLIENTS for kind in type(error).__mro__)


@contextmanager
def built_aside(target: Path) -> Iterator[Path]:
    """A sibling folder to build in; renamed onto `target` at the end, so that a killed build leaves nothing at `target`.

    Folders that killed builds of this host left are removed.

    Raises:
        OSError: as the file system gives it; ENOTEMPTY or EEXIST when another process was faster.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_strays(target)
    folder = target.with_name(f"{_aside(target)}{os.getpid()}")
    try:
        yield folder
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_strays(target: Path) -> None:
    """Removes what killed builds of this host left beside `target`."""
    prefix = _aside(target)
    for stray in target.parent.iterdir():
        pid = stray.name.removeprefix(prefix)
        if stray.name.startswith(prefix) and pid.isdigit() and not is_alive(int(pid)):
            shutil.rmtree(stray, ignore_errors=True)  # another process may be at it too


def _aside(target: Path) -> str:
    return f".{target.name}.partial-{socket.gethostname()}-"


def stranger_in(folder: Path) -> tuple[Path, bool] | None:
    """The first thing below `folder` that is no file or folder of its own, and whether it is a link that leads out.

    Directory entries tell their kind, so that a hundred thousand files take a tenth of a second. What a writer takes away
    meanwhile is passed over.
    """
    home, waiting = Path(os.path.realpath(folder)), [os.fspath(folder)]
    while waiting:
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                    continue
                is_link = entry.is_symlink()
                inside = is_link and Path(os.path.realpath(entry.path)).is_relative_to(home)
                if not (inside or entry.is_file(follow_symlinks=False)) and os.path.lexists(entry.path):
                    return Path(entry.path), is_link
    return None


def is_alive(pid: int) -> bool:
    """Whether a process of this host lives."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
