"""What a process does beside its work: files it opens, programs it starts, code it loads, addresses it calls."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from .runs import MARK

STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.startfile", "pty.spawn")
CALLS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request")
CHANGES = (
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "shutil.rmtree",
)
DRAWN_TAGS = {
    "script",
    "iframe",
    "object",
    "embed",
    "link",
    "base",
    "form",
    "input",
    "button",
    "foreignobject",
    "use",
    "animate",
    "set",
}
ADDRESSES = {"href", "src", "xlink:href", "action", "formaction", "srcset", "poster", "data", "background"}


class Watch:
    """Belongs to one process, for good: Python has no way to take an audit hook back.

    Args:
        root: below which all is watched.
        secrets: files elsewhere that nobody has to open.
    """

    def __init__(self, root: Path, secrets: tuple[str, ...] = ("/etc/passwd", "/etc/hostname", "/dev/zero")):
        self.root, self.secrets, self.allowed, self.writable = f"{os.path.realpath(root)}/", secrets, ("",), ("",)
        self.found: list[str] = []
        self.active = False
        sys.addaudithook(self._hear)

    @contextmanager
    def over(self, read: tuple[Path, ...], write: Path) -> Iterator[list[str]]:
        """What is done that should not be, while the block lasts.

        Args:
            read: folders whose files may be opened; write: the one in which files may be made.
        """
        self.writable = (os.path.realpath(write),)
        self.allowed = (*(os.path.realpath(folder) for folder in read), *self.writable)
        self.found, self.active = [], True
        try:
            yield self.found
        finally:
            self.active = False

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event == "open":
            self._opened(*args)
        elif event in STARTS or event in CALLS or event == "pickle.find_class":
            self.found.append(f"{event} {args!r:.300}")
        elif event == "import" and MARK in str(args[0]):
            self.found.append(f"import {args[0]}")
        elif event in ("exec", "compile") and MARK in repr(args):
            self.found.append(f"{event} {args!r:.300}")
        elif event in CHANGES:
            path, folder = args[0], next((arg for arg in args[1:] if isinstance(arg, int) and arg > 2), None)
            inside = event in ("os.remove", "os.rmdir") and folder is not None  # of an open folder, as rmtree does
            self._touched(event, os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path) if inside else path, writes=True)

    def _opened(self, path: Any, mode: Any, flags: int) -> None:
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if mode is None and not writes and isinstance(path, str) and "/" not in path:
            return  # rmtree, which opens what lies in an open folder
        self._touched("open", path, writes)

    def _touched(self, event: str, path: Any, writes: bool) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        place = os.path.realpath(os.fsdecode(path))
        if place.endswith(
            ("__path_hook__", "<unknown>")
        ):  # an editable installation's, in the current folder's name; a traceback's
            return
        if place in self.secrets:
            self.found.append(f"{event} {place!r}")
        if place.startswith(self.root) and not any(
            place == home or place.startswith(f"{home}/") for home in (self.writable if writes else self.allowed)
        ):
            self.found.append(f"{event} {place!r}{' to write' if writes else ''}")


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inside: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.inside = tag
        if tag in DRAWN_TAGS or (tag == "meta" and "http-equiv" in values) or values.get("id") == MARK:
            self.found.append(f"<{tag} {values}>"[:200])
        for name, value in values.items():
            outside = name in ADDRESSES and not value.startswith(("#", "data:image/"))
            if name.startswith("on") or outside or (name == "style" and "url(" in value):
                self.found.append(f"{tag} {name}={value[:100]!r}")

    def handle_data(self, data: str) -> None:
        if self.inside == "style" and ("url(" in data or "@import" in data or MARK in data):
            self.found.append(f"style {data[:100]!r}")

    def handle_endtag(self, tag: str) -> None:
        self.inside = None

    def handle_comment(self, data: str) -> None:
        self.found.append(f"<!--{data[:100]}")


def dangers_of(page: str) -> list[str]:
    """Whatever in a page would run, be fetched, or came in from elsewhere as more than text."""
    parser = _Page()
    parser.feed(page)
    parser.close()
    if str(7777 * 7777) in page:
        parser.found.append("a template in a text was filled in")
    return parser.found
