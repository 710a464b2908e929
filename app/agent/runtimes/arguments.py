"""`{placeholders}` of a configured command, filled in from a task, each inside its own argument and never through a
shell.

    {name}                  the task's parameter `name`: a text as it is, other values as JSON; nothing for null
    {runyard.parameters}    the path of the JSON file with all parameters
    {runyard.inputs}  {runyard.outputs}  {runyard.work}    directories
    {runyard.python}        the Python that runs this agent
    {{  }}                  braces

A value must not become an option by surprise: a text that begins with `-` is refused where it would begin an
argument, unless a `--` stands before it in the command. `--title={title}` is always safe.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from app.agent.errors import RefusedByAgent

OWN = "runyard."

_TOKEN = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_.-]*)\}")


def places(directory: Path) -> dict[str, str]:
    """The values that the agent itself provides for an attempt in `directory`."""
    return {
        OWN + "parameters": str(directory / "parameters.json"),
        OWN + "inputs": str(directory / "inputs"),
        OWN + "outputs": str(directory / "outputs"),
        OWN + "work": str(directory),
        OWN + "python": sys.executable,
    }


def fill(argv: Sequence[str], parameters: Mapping[str, Any], own: Mapping[str, str]) -> list[str]:
    """The arguments to run. Raises RefusedByAgent for a parameter that is missing or must not stand where it would."""
    options_end = argv.index("--") if "--" in argv else len(argv)
    return [_argument(part, parameters, own, guarded=number < options_end) for number, part in enumerate(argv)]


def _argument(part: str, parameters: Mapping[str, Any], own: Mapping[str, str], *, guarded: bool) -> str:
    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return match[0][0]
        if name.startswith(OWN):
            if name not in own:
                raise RefusedByAgent(f"command: expected one of {', '.join(own)}, found {{{name}}} in its arguments")
            return own[name]
        if name not in parameters:
            raise RefusedByAgent(f"command: expected a parameter {name!r} for its arguments, found none in the task")
        text = _text(parameters[name])
        if "\0" in text:
            raise RefusedByAgent(f"parameter {name}: expected a text without NUL for an argument, found one")
        return text

    filled = _TOKEN.sub(value, part)
    if guarded and filled.startswith("-") and not part.startswith("-") and not _is_number(part, parameters):
        raise RefusedByAgent(f"argument {part!r}: expected no option of the command, found {filled[:40]!r}")
    return filled


def _is_number(part: str, parameters: Mapping[str, Any]) -> bool:
    whole = _TOKEN.fullmatch(part)
    return whole is not None and isinstance(parameters.get(whole[1]), int | float)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else orjson.dumps(value).decode()
