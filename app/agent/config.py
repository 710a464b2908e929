"""The agent's configuration: command line over environment over TOML file, checked whole before anything starts.

Every fault is one sentence that names the setting, what was expected and what was found.
"""

import math
import os
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from app.agent.errors import ConfigError

SETTINGS = {
    *("url", "key_file", "name", "slots", "labels", "state_dir", "log_format", "no_drain", "drain_timeout"),
    *("commands", "timings"),
}
MAX_SLOTS = 1024
MAX_NAME = 100  # characters


@dataclass(frozen=True)
class Timings:
    """Every duration of the agent, in seconds."""

    first_reconnect: float = 5.0  # after a lost connection, drawn from 0 up to this
    backoff_min: float = 1.0
    backoff_max: float = 30.0
    report_every: float = 0.1
    latest_every: float = 0.5  # progress and previews
    retry: float = 1.0  # after a fault of the server, doubling up to:
    retry_max: float = 30.0
    answer: float = 15.0  # until an operation is repeated
    finish_retry: float = 2.0
    finish_retry_max: float = 3600.0
    lost_grace: float = 2.0  # for work whose lease is over
    offline: float = 600.0  # that work goes on while the server cannot be heard
    stop_grace: float = 10.0  # for work that a stopping agent ends
    farewell: float = 15.0  # a stopping agent's last words to the server
    fallback_hold: float = 300.0  # on HTTP, before the socket is tried again

    def scaled(self, factor: float) -> "Timings":
        """All of them times `factor`; tests use it."""
        return Timings(**{f.name: getattr(self, f.name) * factor for f in fields(self)})


@dataclass(frozen=True)
class Command:
    """A program that workflows may run here; `argv` may hold placeholders, `inherit` names our own variables."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    inherit: tuple[str, ...] = ()


@dataclass(frozen=True)
class Config:
    """All that a running agent needs to know."""

    url: str
    name: str
    key: str = field(repr=False)
    slots: int = 1
    labels: tuple[str, ...] = ()
    state_dir: Path = Path()
    commands: Mapping[str, Command] = field(default_factory=dict)
    log_format: Literal["text", "json"] = "text"
    no_drain: bool = False
    drain_timeout: float | None = None  # seconds until what runs is ended; None: it may take as long as it takes
    timings: Timings = field(default_factory=Timings)


def load(given: Mapping[str, Any], environ: Mapping[str, str]) -> Config:
    """The configuration from parsed arguments (None = not given), the environment and the file that `config` names.

    Raises ConfigError for anything unknown, missing or out of range.
    """
    table = _read_file(given.get("config") or environ.get("RUNYARD_AGENT_CONFIG"))
    for name in table.keys() - SETTINGS:
        raise ConfigError(f"{name}: expected one of {', '.join(sorted(SETTINGS))} in the configuration file")
    settings = {**table, **{k: v for k, v in given.items() if v is not None}}
    return Config(
        url=_url(settings.get("url") or environ.get("RUNYARD_AGENT_URL")),
        key=_key(given.get("key"), environ, settings.get("key_file")),
        name=_name(settings.get("name", socket.gethostname())),
        slots=_slots(settings.get("slots", 1)),
        labels=_labels(settings.get("labels", [])),
        state_dir=_state_dir(settings.get("state_dir"), environ),
        commands=_commands(settings.get("commands", {})),
        log_format=_log_format(settings.get("log_format", "text")),
        no_drain=_typed("no_drain", settings.get("no_drain", False), bool, "true or false"),
        drain_timeout=_drain_timeout(settings.get("drain_timeout")),
        timings=_timings(settings.get("timings", {})),
    )


def _read_file(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"config: expected a readable file, found {path} ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: expected TOML in {path}, found a fault: {error}") from None


def _url(value: Any) -> str:
    parts = urlsplit(value) if isinstance(value, str) else None
    if not parts or parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(f"url: expected the server's address such as https://runyard.example, found {value!r}")
    return parts.geturl().rstrip("/")


def _key(argument: str | None, environ: Mapping[str, str], path: str | None) -> str:
    key = argument or environ.get("RUNYARD_AGENT_KEY")
    if key is None and path is not None:
        try:
            key = Path(path).expanduser().read_text()
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"key_file: expected a readable file with an ak- key, found {path}") from None
    if key is None:
        raise ConfigError("key: expected an ak- key by --key, RUNYARD_AGENT_KEY or key_file, found none")
    key = key.strip()
    if not key.startswith("ak-") or not key.isascii() or any(c.isspace() for c in key):
        raise ConfigError("key: expected an agent key that begins with ak-, found something else")
    return key


def _name(value: Any) -> str:
    if (
        not isinstance(value, str)
        or not 1 <= len(value) <= MAX_NAME
        or not value.isprintable()
        or value != value.strip()
    ):
        raise ConfigError(f"name: expected 1 to {MAX_NAME} printable characters, found {value!r}")
    return value


def _slots(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SLOTS:
        raise ConfigError(f"slots: expected a whole number from 1 to {MAX_SLOTS}, found {value!r}")
    return value


def _drain_timeout(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ConfigError(f"drain_timeout: expected seconds, 0 or more, found {value!r}")
    return float(value)


def _labels(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [label.strip() for label in value.split(",") if label.strip()]
    if not isinstance(value, list) or not all(
        isinstance(v, str) and v and len(v) <= MAX_NAME and v.isprintable() for v in value
    ):
        raise ConfigError(f"labels: expected a list of texts of 1 to {MAX_NAME} printable characters, found {value!r}")
    return tuple(dict.fromkeys(value))


def _state_dir(value: Any, environ: Mapping[str, str]) -> Path:
    value = value or environ.get("RUNYARD_AGENT_STATE_DIR")
    if value is None:
        base = environ.get("XDG_STATE_HOME")
        return (Path(base) if base else Path.home() / ".local" / "state") / "runyard-agent"
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"state_dir: expected a directory, found {value!r}")
    return Path(value).expanduser().absolute()


def _commands(value: Any) -> dict[str, Command]:
    table = _typed("commands", value, dict, "a table [commands.NAME]")
    return {name: _command(f"commands.{name}", entry) for name, entry in table.items()}


def _command(where: str, entry: Any) -> Command:
    table = _typed(where, entry, dict, "a table with argv")
    for name in table.keys() - {"argv", "env", "inherit"}:
        raise ConfigError(f"{where}.{name}: expected argv, env or inherit")
    argv = _texts(f"{where}.argv", table.get("argv"))
    if not argv or not argv[0]:
        raise ConfigError(f"{where}.argv: expected a list that begins with a program, found {argv!r}")
    env = _typed(f"{where}.env", table.get("env", {}), dict, "a table of texts")
    if not all(isinstance(v, str) for v in env.values()):
        raise ConfigError(f"{where}.env: expected a table of texts, found {env!r}")
    return Command(argv, env, _texts(f"{where}.inherit", table.get("inherit", [])))


def _texts(where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) and "\0" not in v for v in value):
        raise ConfigError(f"{where}: expected a list of texts, found {value!r}")
    return tuple(value)


def _timings(value: Any) -> Timings:
    table = _typed("timings", value, dict, "a table of seconds")
    known = {f.name for f in fields(Timings)}
    for name, seconds in table.items():
        if name not in known | {"scale"}:
            raise ConfigError(f"timings.{name}: expected one of scale, {', '.join(sorted(known))}")
        if not isinstance(seconds, int | float) or isinstance(seconds, bool) or seconds < 0:
            raise ConfigError(f"timings.{name}: expected a number that is not negative, found {seconds!r}")
    own = {name: float(seconds) for name, seconds in table.items() if name != "scale"}
    scaled = Timings().scaled(float(table.get("scale", 1.0)))
    return Timings(**{name: own.get(name, getattr(scaled, name)) for name in known})


def _log_format(value: Any) -> Literal["text", "json"]:
    if value not in ("text", "json"):
        raise ConfigError(f"log_format: expected text or json, found {value!r}")
    return cast(Literal["text", "json"], value)


def _typed(name: str, value: Any, kind: type, expected: str) -> Any:
    if not isinstance(value, kind):
        raise ConfigError(f"{name}: expected {expected}, found {value!r}")
    return value
