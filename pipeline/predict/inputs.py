"""What a user names (files, folders, globs, films, cameras) -> sources of pictures, each with a name of its own."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from polyp_difom.cache.errors import DataError, UsageError
from polyp_difom.pipeline.data.frames import FORMATS
from polyp_difom.pipeline.data.layouts import IMAGE_FOLDERS, MASK_FOLDERS, named_folders
from polyp_difom.pipeline.data.pairing import printable
from polyp_difom.pipeline.predict.dicom import dicom
from polyp_difom.pipeline.predict.films import camera, camera_name, film
from polyp_difom.pipeline.predict.pictures import Found, Source, StillSource
from polyp_difom.pipeline.progress import Progress

PICTURES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2"])
FILMS = frozenset(
    [".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp",
     ".ogv", ".vob", ".mxf"]
)  # fmt: skip
_WANTED = "a picture, a film, a DICOM file, a folder of pictures, a glob in quotes, or camera:0"
_LONGEST_NAME = 180  # bytes, of the 255 that file systems take: room for suffixes, numbers and ".partial"
_CAMERA = re.compile(r"camera:(\d+)|(/dev/video\d+)")
_MAKERS: dict[str, Callable[[Found], Source]] = {"picture": StillSource, "film": film, "dicom": dicom}


def find_sources(texts: Sequence[str], progress: Progress | None = None) -> list[Source]:
    """All sources that `texts` name, in order, none twice; nothing is decoded yet.

    A folder stands for the pictures and DICOM files in it and in its sub-folders, hidden files aside, and a data set's masks.

    Raises:
        DataError: something that does not exist, holds no picture or is nothing that can be read.
        UsageError: several cameras.
        MissingDependencyError: a film or DICOM file, and its extra is not installed.
    """
    devices = {match[2] or f"/dev/video{match[1]}" for text in texts if (match := _CAMERA.fullmatch(text))}
    if len(devices) > 1:
        raise UsageError("one camera at a time", got=" and ".join(sorted(devices)), remedy="start the command once for each")
    listed: dict[Path, tuple[Path, Path, str]] = {}
    for text in texts:
        if not _CAMERA.fullmatch(text):
            for path, root, kind in _listed(text, progress or Progress()):
                listed.setdefault(path.resolve(), (path, root, kind))
    entries = list(listed.values())
    founds = _named([(path, root) for path, root, _ in entries], {camera_name(device) for device in devices})
    files = [_MAKERS[kind](found) for found, (_, _, kind) in zip(founds, entries, strict=True)]
    return [*files, *map(camera, devices)]


def _listed(text: str, progress: Progress) -> list[tuple[Path, Path, str]]:
    """(path, the folder that its name is relative to, kind) of everything that one input stands for."""
    path = Path(text).expanduser()
    if path.is_file():
        if (kind := kind_of(path)) is None:
            raise DataError("not an input that can be read", where=printable(path), wanted=_WANTED)
        return [(path, path.parent, kind)]
    if path.is_dir():
        found = sorted(path.rglob("*"))
        homes = [folder for folder in (path, *found) if folder.is_dir() and named_folders(folder, IMAGE_FOLDERS)]
        masks = [mask for home in homes for mask in named_folders(home, MASK_FOLDERS)]
        hidden = frozenset(masks)
        paths = [each for each in found if hidden.isdisjoint(each.parents)]
        root, kinds = path, {"picture", "dicom"}
        if masks:
            named = ", ".join(str(mask.relative_to(path)) for mask in masks[:3])
            progress.say(f"{printable(text)}: {named}{', ...' if masks[3:] else ''} left out, beside images")
    elif matches := _matches(path):
        paths, kinds = matches, {"picture", "dicom", "film"}
        root = Path(os.path.commonpath([os.path.abspath(match.parent) for match in paths]))
    else:
        raise DataError("no such input", where=printable(text), wanted=_WANTED)
    files = [path for path in paths if not path.name.startswith(".") and path.is_file()]
    chosen = [(path, root, kind) for path in files if (kind := kind_of(path)) in kinds]
    if not chosen:
        raise DataError(
            "no picture in this folder" if path.is_dir() else "no picture among these files", where=printable(text),
            got=f"{len(files)} other files", remedy="films in a folder: name them, or give a glob in quotes",
        )  # fmt: skip
    if left := len(files) - len(chosen):
        progress.say(f"{printable(text)}: {len(chosen)} pictures; {left} other files are left out")
    return chosen


def _matches(pattern: Path) -> list[Path]:
    """What a glob finds; "**" does not follow links, which may lead in circles."""
    fixed = next((number for number, part in enumerate(pattern.parts) if glob.has_magic(part)), None)
    if fixed is None:
        return [pattern] if pattern.exists() else []
    # only a part that is "**" goes into sub-folders; as the last one it stands for the files there
    loose = [part if part == "**" else re.sub(r"\*+", "*", part) for part in pattern.parts[fixed:]]
    return sorted(Path(*pattern.parts[:fixed]).glob("/".join([*loose, "*"] if loose[-1] == "**" else loose)))


def kind_of(path: Path) -> str | None:
    """ "picture", "film" or "dicom", by suffix, else by content; None for anything else."""
    suffix = path.suffix.lower()
    if suffix in PICTURES:
        return "picture"
    if suffix in FILMS:
        return "film"
    try:
        with path.open("rb") as file:
            if suffix == ".dcm" or file.read(132)[128:] == b"DICM":
                return "dicom"
        with Image.open(path, formats=FORMATS):
            return "picture"
    except (OSError, UnidentifiedImageError):
        return None
    except Exception:  # a picture, too large or damaged: its reader says what is wrong
        return "picture"


def _named(entries: list[tuple[Path, Path]], used: set[str]) -> list[Found]:
    """Names for the outputs: the path within the input without suffix; with it, and numbered, where two would be the same.

    No name of `used` is given.
    """
    files = [printable(os.path.relpath(path, root)) for path, root in entries]  # a glob may hold ".."
    stems = [_fitting(os.path.splitext(file)[0]) for file in files]
    # two names that differ in upper and lower case alone are one file on some disks
    twins, doubled = Counter(stem.casefold() for stem in stems), Counter(files)
    founds = []
    for (path, _), file, stem in zip(entries, files, stems, strict=True):
        wanted = stem if twins[stem.casefold()] == 1 else _fitting(file)
        name, number = wanted, 1
        while name.casefold() in used:
            number += 1
            name = f"{wanted}-{number}"
        used.add(name.casefold())
        founds.append(Found(path, file if doubled[file] == 1 else printable(path), name))
    return founds


def _fitting(name: str) -> str:
    """The same path, each part short enough for a file system once suffixes are added; a digest stands for what is cut off."""
    parts = [
        part if len(part.encode()) <= _LONGEST_NAME
        else part.encode()[:_LONGEST_NAME - 9].decode(errors="ignore") + "-" + hashlib.sha256(part.encode()).hexdigest()[:8]
        for part in name.split("/")
    ]  # fmt: skip
    return "/".join(parts)
