"""Weights: read without running code, downloaded only with a digest that holds."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import pytest
import torch

from polyp_difom.cache.errors import MissingDependencyError, UsageError
from polyp_difom.pipeline.teachers.weights import downloaded, fetch, load_state

URL = "https://example.org/weights.pth"


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"junk", b"PK\x03\x04"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with pytest.raises(MissingDependencyError) as caught:
        load_state(path, teacher="sam:vit_b")
    assert caught.value.details["where"] == path
    assert str(caught.value.details["got"]).strip()


class Malicious:
    """Pickles into a call that makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_refused_and_does_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"weight": torch.zeros(2), "payload": Malicious(trace)}, tmp_path / "evil.pth")
    with pytest.raises(MissingDependencyError, match="cannot be read"):
        load_state(tmp_path / "evil.pth", teacher="sam:vit_b")
    assert not trace.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert trace.exists()  # the same file would have run it


@pytest.mark.parametrize("source", [URL, f"{URL}#sha256=abc", f"{URL}#md5={'0' * 64}"])
def test_a_url_without_a_digest_is_refused(source: str) -> None:
    with pytest.raises(UsageError, match="no digest"):
        fetch(source, teacher="sam:vit_b")


class Response(io.BytesIO):
    """Bytes with headers."""

    headers: dict[str, str]


class Web:
    """Stands in for urllib: serves bytes, counts visits, may break off half-way."""

    def __init__(self, content: bytes, error: BaseException | None = None):
        self.content, self.error, self.visits = content, error, 0

    def __call__(self, url: str, timeout: float) -> io.BytesIO:
        self.visits += 1
        stream = Response(self.content)
        stream.headers = {"Content-Length": str(len(self.content))}
        if self.error is not None:
            serve, error = stream.read, self.error
            parts = iter([serve(1)])

            def read(size: int | None = -1, /) -> bytes:
                for part in parts:
                    return part
                raise error

            stream.read = read  # type: ignore[method-assign]
        return stream


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYP_DIFOM_WEIGHTS", str(tmp_path / "home"))
    return tmp_path / "home"


def source_of(content: bytes) -> str:
    return f"{URL}#sha256={hashlib.sha256(content).hexdigest()}"


def test_a_download_is_verified_kept_and_not_repeated(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(3_000_000)
    web = Web(content)
    monkeypatch.setattr("urllib.request.urlopen", web)
    assert downloaded(source_of(content)) is None
    said: list[str] = []
    path = fetch(source_of(content), teacher="t", licence="MIT", say=said.append)
    assert path.read_bytes() == content
    assert fetch(source_of(content), teacher="t", say=said.append) == path == downloaded(source_of(content))
    assert web.visits == 1
    assert said == [f"downloading {URL}: 3 MiB, licence MIT"]
    assert list(home.iterdir()) == [path]


def test_a_download_of_other_bytes_is_refused_and_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", Web(b"forged"))
    with pytest.raises(MissingDependencyError, match="not the expected ones") as caught:
        fetch(source_of(b"true"), teacher="t")
    assert hashlib.sha256(b"forged").hexdigest() in str(caught.value)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "raised"), [(ConnectionResetError("cut"), MissingDependencyError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_a_broken_download_leaves_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, raised: type[BaseException]
) -> None:
    monkeypatch.setattr("urllib.request.urlopen", Web(b"true", error))
    with pytest.raises(raised):
        fetch(source_of(b"true"), teacher="t")
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("scheme", ["http", "file", "ftp"])
def test_only_https_is_downloaded(home: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    web = Web(b"x")
    monkeypatch.setattr("urllib.request.urlopen", web)
    with pytest.raises(UsageError, match="not https"):
        fetch(source_of(b"x").replace("https", scheme), teacher="t")
    assert web.visits == 0


def test_downloaded_weights_that_were_damaged_since_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYP_DIFOM_WEIGHTS", str(tmp_path))
    digest = hashlib.sha256(b"good").hexdigest()
    held = tmp_path / f"{digest[:16]}-w.pth"
    held.write_bytes(b"good")
    source = f"https://example.org/w.pth#sha256={digest}"
    assert fetch(source, teacher="sam:vit_b") == held
    held.write_bytes(b"g00d")
    with pytest.raises(MissingDependencyError, match="damaged"):
        fetch(source, teacher="sam:vit_b")
