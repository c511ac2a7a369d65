"""Models of the transformers library from a local folder or a hub id; size and licence are said before a download."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from polyp_difom.cache.errors import MissingDependencyError, PolypDifomError, UsageError, first_line
from polyp_difom.pipeline.teachers.protocol import Request
from polyp_difom.pipeline.teachers.weights import megabytes

WANTED = "a local folder with config.json and model.safetensors, or a reachable hub id"
PUBLISHED: dict[str, str] = {}
"""Hub id of every named teacher that comes from the hub; families add theirs."""
_WEIGHT_FILES = r"(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)"


def published(request: Request) -> str:
    """The hub id behind a teacher's name, without its depths.

    Raises:
        UsageError: the family has no such variant.
    """
    name = request.name.partition("@")[0]
    if name not in PUBLISHED:
        family = name.partition(":")[0]
        known = ", ".join(known for known in PUBLISHED if known.startswith(f"{family}:"))
        raise UsageError(
            f"unknown {family} model {request.variant!r}", wanted=f"one of: {known}, or {family}:<folder or hub id>"
        )
    return PUBLISHED[name]


def pretrained(request: Request, source: str, model: Any, kinds: tuple[str, ...], licence: str, part: str = "") -> nn.Module:
    """`model.from_pretrained(source)` in float32, with every weight that it (or its submodule `part`) needs.

    Args:
        model: a transformers class with `from_pretrained`.
        kinds: prefixes that the configuration's `model_type` may have; "" lets any pass.

    Raises:
        UsageError: a URL, or a model of another family.
        MissingDependencyError: weights not reachable, unreadable or incomplete.
    """
    _refuse_url(request, source)
    announce(request, source, licence)
    from transformers import AutoConfig
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # ours is the only one
    try:
        kind = str(AutoConfig.from_pretrained(source, trust_remote_code=False).model_type)
        if not kind.startswith(kinds):
            raise UsageError(
                f"teacher {request.name!r} was given another model", where=source, got=kind, wanted=" or ".join(kinds)
            )
        loaded, report = model.from_pretrained(source, trust_remote_code=False, output_loading_info=True)
    except PolypDifomError:
        raise
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, SafetensorError) as error:
        raise unreachable(request, source, error) from error
    finally:
        logging.set_verbosity(verbosity)
    # transformers fills what is missing or of another shape with random numbers
    lacking = {*report["missing_keys"], *(row[0] for row in report["mismatched_keys"])}
    if missing := sorted(key for key in lacking if key.startswith(part)):
        raise MissingDependencyError(
            f"the weights of teacher {request.name!r} are incomplete", where=source,
            got=f"no {missing[0]} ({len(missing)} missing)", wanted=WANTED, remedy=f"give --weights {request.name}=FOLDER",
        )  # fmt: skip
    return loaded.float()


def _refuse_url(request: Request, source: str) -> None:
    if "://" in source:
        raise UsageError(
            f"teacher {request.name!r} is several files, which one URL cannot give", where="--weights", got=source,
            wanted=WANTED, remedy=f"download the model's files into a folder, then give --weights {request.name}=FOLDER",
        )  # fmt: skip


def announce(request: Request, source: str, licence: str) -> None:
    """Says size and licence of what is about to be downloaded; silent for folders, for what is on disk, and offline.

    Raises:
        MissingDependencyError: the hub does not answer, does not know the id, or wants its licence accepted first.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    if constants.HF_HUB_OFFLINE or Path(source).expanduser().is_dir():
        return
    try:
        if any(isinstance(try_to_load_from_cache(source, name), str) for name in names):
            return
        info = HfApi().model_info(source, files_metadata=True)
    except Exception as error:  # the network stack beneath the hub's client changes with its version
        raise unreachable(request, source, error) from error
    files = [file for file in info.siblings or [] if re.fullmatch(_WEIGHT_FILES, file.rfilename)]
    safe = [file for file in files if file.rfilename.endswith("safetensors")] or files
    stated = getattr(info.card_data, "license", None)
    request.say(f"downloading {source}: {megabytes(sum(file.size or 0 for file in safe))}, licence {stated or licence}")


def unreachable(request: Request, source: str, error: Exception) -> MissingDependencyError:
    """The error of weights that cannot be loaded, with what to do about it."""
    from_file = request.name.startswith("timm:")
    remedy = f"give --weights {request.name}={'PATH' if from_file else 'FOLDER'}"
    if "gated" in f"{type(error).__name__} {error}".lower():
        remedy = f"accept the model's licence on the hub and log in with `hf auth login`, or {remedy}"
    return MissingDependencyError(
        f"the weights of teacher {request.name!r} cannot be loaded", where=source, got=first_line(error),
        wanted="a checkpoint file, or a reachable hub" if from_file else WANTED, remedy=remedy,
    )  # fmt: skip
