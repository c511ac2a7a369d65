"""Hub folders: config.json, model.safetensors and README.md, on disk or on the Hugging Face hub; nothing in them is run."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import load_file

from polyp_difom.cache.errors import MissingDependencyError, RunError, UsageError, first_line
from polyp_difom.pipeline.models.exported import Description
from polyp_difom.pipeline.models.loading import kind_of
from polyp_difom.pipeline.models.network import NetworkModel
from polyp_difom.pipeline.models.strangers import require_closed, require_header

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FILES = (CONFIG, WEIGHTS, CARD)
LARGEST = {CONFIG: 1 << 20, WEIGHTS: 1 << 30}
"""Bytes; more is no folder of ours."""


def load_hub_folder(path: Path, device: str = "auto", precision: str = "float32") -> NetworkModel:
    """The network of a hub folder: sizes and description checked, weights read as safetensors, keys and shapes matched.

    Raises:
        RunError: damaged, too large, or not what the description says.
    """
    for name, limit in LARGEST.items():
        if (size := (path / name).stat().st_size) > limit:
            raise RunError("the file is larger than any of ours", where=path / name, got=f"{size} bytes", wanted=f"<= {limit}")
    require_header(path / WEIGHTS)
    try:
        text = (path / CONFIG).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError("the hub folder's description cannot be read", where=path / CONFIG, got=error) from error
    about = Description.parse(text, path / CONFIG)
    try:
        tensors = load_file(path / WEIGHTS)
    except Exception as error:  # safetensors' own has no other base
        raise RunError("not a safetensors file, or a damaged one", where=path / WEIGHTS, got=str(error)[:160]) from error
    header = {**about.header, "frame_size": about.frame_size, "export": about.model_dump(mode="json", exclude={"header"})}
    return NetworkModel("hub-folder", path, tensors, header, device, precision)


def from_pretrained(
    name_or_folder: str | Path, revision: str | None = None, device: str = "auto", precision: str = "float32"
) -> NetworkModel:
    """A shared network, ready to predict.

    Args:
        name_or_folder: a hub folder on disk, or "ORG/NAME" on the hub.
        revision: branch, tag or commit on the hub.

    Raises:
        UsageError: neither a folder nor a name. RunError: not a hub folder. MissingDependencyError: the hub is out of reach.
    """
    folder = Path(name_or_folder)
    if folder.is_dir():
        require_closed(folder)
    else:
        folder = pulled(f"{name_or_folder}@{revision}" if revision else str(name_or_folder))
    if kind_of(folder) != "hub-folder":
        raise RunError(
            "not a hub folder", where=folder, wanted=", ".join(FILES), remedy="polyp-difom export RUN --to hub-folder"
        )
    return load_hub_folder(folder, device, precision)


def pulled(text: str) -> Path:
    """Folder of "ORG/NAME[@REVISION]", fetched unless it is there already; nothing but `FILES` is fetched.

    Raises:
        UsageError: no such name. RunError: it is there, but no network of ours. MissingDependencyError: out of reach.
    """
    name, _, revision = text.partition("@")
    check_name(name)
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=list(FILES)))
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError) as error:
        raise MissingDependencyError(
            "the hub does not give this network", where=f"hf:{text}", got=first_line(error)[:200],
            remedy="check name and revision; a private one needs a token in the environment (HF_TOKEN)",
        ) from error  # fmt: skip
    except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise MissingDependencyError(
            "the network cannot be fetched from the hub", where=f"hf:{text}", got=first_line(error)[:200],
            remedy="fetch it where the hub is in reach, and give the folder",
        ) from error  # fmt: skip
    if absent := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        raise RunError(
            "no network of ours in this place on the hub", where=f"hf:{text}", got=f"no {absent[0]}", wanted=", ".join(FILES),
            remedy="polyp-difom export RUN --to hub-folder --push ORG/NAME puts one there",
        )  # fmt: skip
    return folder


def push_to_hub(folder: Path, name: str, private: bool = True) -> str:
    """Put a hub folder on the hub, in a repository that is made if need be; the token comes from the environment.

    Returns:
        its address.

    Raises:
        UsageError: no such name. RunError: not a hub folder. MissingDependencyError: no token, or the hub is out of reach.
    """
    check_name(name)
    load_hub_folder(folder, "cpu")  # whatever is shared can be loaded
    api = HfApi()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(FILES), commit_message="polyp-difom export")
    except (LocalTokenNotFoundError, HfHubHTTPError, OSError) as error:
        raise MissingDependencyError(
            "the network cannot be put on the hub", where=f"hf:{name}", got=first_line(error)[:200],
            remedy="check the name, and set HF_TOKEN to a token that may write there",
        ) from error  # fmt: skip
    return str(address)


def check_name(name: str) -> None:
    """Raises UsageError unless the name is ORG/NAME as the hub allows it."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError("no name of a place on the hub", got=name, wanted="ORG/NAME") from error
    if name.count("/") != 1:
        raise UsageError("no name of a place on the hub", got=name, wanted="ORG/NAME")
