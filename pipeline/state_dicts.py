"""State dicts from files that users bring: .safetensors or torch's; nothing is unpickled as code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyp_difom.cache.errors import MissingDependencyError, first_line


def read_state(path: Path, what: str, remedy: str) -> dict[str, Tensor]:
    """Tensors of a .safetensors or torch checkpoint by name; unwraps "model"/"state_dict" and "module.".

    Args:
        what: the file's part in the work, for messages.
        remedy: what to do about a wrong one.

    Raises:
        MissingDependencyError: not such a file, or not a state dict.
    """
    wanted = "a torch or safetensors checkpoint that holds tensors only"
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own text advises to let the file run code
        raise MissingDependencyError(
            f"{what} cannot be read", where=path, got="a file that holds more than tensors, or is no checkpoint", wanted=wanted,
            remedy=f"save its state_dict() as .safetensors, or {remedy}",
        ) from error  # fmt: skip
    except Exception as error:
        raise MissingDependencyError(
            f"{what} cannot be read", where=path, got=first_line(error), wanted=wanted, remedy=remedy
        ) from error
    if isinstance(state, dict):
        state = next((state[key] for key in ("model", "state_dict") if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise MissingDependencyError(
            f"{what} is not a state dict", where=path, got=type(state).__name__, wanted=wanted, remedy=remedy
        )
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}
