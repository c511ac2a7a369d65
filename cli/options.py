"""Options that several commands share, and how their values become validated configurations."""

from __future__ import annotations

from collections.abc import Container
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


def validated(model: type[Model], file: Path | None = None, typed: Container[str] = (), /, **values: Any) -> Model:
    """The model with these values.

    Args:
        file: the YAML file that values were read from, if one was.
        typed: names of values that are flags', whatever the file says.

    Raises:
        UsageError: an unknown option, one that is missing, or a value out of range; names the option, or file, line and key.
    """
    from difflib import get_close_matches

    from pydantic import ValidationError

    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # options that contradict each other
            raise UsageError(first["msg"].removeprefix("Value error, "), where=file) from error
        name = str(first["loc"][0])
        place = None if file is None or name in typed else _place(file, name, first["input"])
        option = name if place else "--" + name.replace("_", "-")
        if first["type"] == "extra_forbidden":
            close = get_close_matches(name, model.model_fields, n=2)
            raise UsageError(
                f"unknown option {name!r}", where=place, got=f"{name}: {first['input']}",
                wanted=f"one of: {', '.join(model.model_fields)}",
                remedy=f"did you mean {' or '.join(close)}?" if close else None,
            ) from error  # fmt: skip
        if first["input"] is None:
            raise UsageError(f"{option} is missing", where=place or option) from error
        said = f"{option} cannot be used: {first['msg'].lower()}"
        raise UsageError(said, where=place or option, got=first["input"]) from error


def _place(file: Path, name: str, value: object) -> str | None:
    """File and line that set an option to this value, in words; None where they do not set it at all."""
    from polyp_difom.pipeline.yaml_files import line_of

    if line := line_of(file, name):
        return f"{file}, line {line}"
    return None if value is None else str(file)  # under a merge key


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
