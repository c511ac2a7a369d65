"""Options that several commands share, and how their values become validated configurations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from polyp_difom.cache.errors import UsageError, first_line

if TYPE_CHECKING:
    from pydantic import BaseModel

    Model = TypeVar("Model", bound=BaseModel)

Data = Annotated[list[str], typer.Option("--data", "-d", help="Data folder, or LAYOUT=FOLDER; repeatable.")]
SplitBy = Annotated[str, typer.Option(help="auto, pranet, seeded, or a CSV file `stem,split`.")]
SplitSeed = Annotated[int, typer.Option("--split-seed", help="Seed of seeded splits.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")]
Precision = Annotated[str, typer.Option(help="auto, float32, bfloat16.")]
Trust = Annotated[bool, typer.Option("--trust", help="Open a TorchScript file: it is a program, so only your own.")]
StageDir = Annotated[
    Path | None, typer.Option("--stage-dir", help="Local folder for a copy of what is read, which all processes share.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Results and errors only.")]


def names(text: str, option: str) -> tuple[str, ...]:
    """A comma-separated list: "a, b" -> ("a", "b").

    Raises:
        UsageError: nothing in it; names the option.
    """
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise UsageError("nothing is named", where=option, got=repr(text), wanted="one or several, separated by commas")
    return found


def validated(model: type[Model], **values: Any) -> Model:
    """The model with these values.

    Raises:
        UsageError: an unknown option, one that is missing, or a value out of range; names the option.
    """
    from difflib import get_close_matches

    from pydantic import ValidationError

    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # options that contradict each other
            raise UsageError(first["msg"].removeprefix("Value error, ")) from error
        name = str(first["loc"][0])
        option = "--" + name.replace("_", "-")
        if first["type"] == "extra_forbidden":
            close = get_close_matches(name, model.model_fields, n=2)
            raise UsageError(
                f"unknown option {name!r}", got=f"{name}: {first['input']}", wanted=f"one of: {', '.join(model.model_fields)}",
                remedy=f"did you mean {' or '.join(close)}?" if close else None,
            ) from error  # fmt: skip
        if first["input"] is None:
            raise UsageError(f"{option} is missing", where=option) from error
        raise UsageError(f"{option} cannot be used: {first['msg'].lower()}", where=option, got=first["input"]) from error


def merged(context: typer.Context, config: Path | None, flags: dict[str, Any]) -> dict[str, Any]:
    """Defaults, then the file, then the flags that were typed."""
    return flags if config is None else flags | read_yaml(config) | typed(context, flags)


def typed(context: typer.Context, flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were typed."""
    sources = {name: context.get_parameter_source(name) for name in flags}
    return {name: flags[name] for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file, loaded safely.

    Raises:
        UsageError: no such file, or no mapping in it.
    """
    from polyp_difom.pipeline.yaml_files import read_mapping

    try:
        loaded = read_mapping(path)
    except (OSError, ValueError) as error:
        raise UsageError("the configuration cannot be read", where=path, got=first_line(error)) from error
    return {str(name).replace("-", "_"): value for name, value in loaded.items()}
