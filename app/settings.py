"""Every knob, typed, read once and passed on as values: `RUNYARD_<NAME>` in the environment, or `--<name>`.

`python -m app.settings` prints the table that `docs/configuration.md` holds.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "RUNYARD_"
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
EMBEDDED_CONNECTIONS = 90  # of all workers; a few of its 100 are for whoever looks in
ROLES = frozenset({"api", "agents", "loops"})


class WrongSetting(Exception):
    """A setting is missing, malformed or contradicts another; the message names it."""


class Settings(BaseSettings):
    """How one server process runs. Without a setting it is complete: embedded servers, loopback, local disk."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)

    # Where it listens and what others call it.
    host: str = Field("127.0.0.1", description="Address to listen on; loopback unless you say otherwise.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    public_url: str = Field(
        "", description="What browsers and agents call this server; decides origins, cookies and signed links."
    )
    allowed_origins: str = Field("", description="Further browser origins, comma separated, exact.")
    trusted_proxies: str = Field(
        "", description="Addresses of proxies whose forwarding headers count, comma separated."
    )

    # Who does it.
    workers: int = Field(1, ge=1, le=64, description="Processes that share the port; more than one on several cores.")
    role: str = Field(
        "api,agents,loops",
        description="What this process does: serve people and keys (`api`), agents (`agents`), and see to the clock "
        "(`loops`), comma separated. Somebody must do each.",
    )
    metrics_port: int = Field(
        0, ge=0, le=65535, description="Worker n also listens on this port plus n - 1, for its own metrics; 0: nowhere."
    )

    # Where it keeps things.
    data_dir: Path = Field(
        default_factory=lambda: default_data_dir(os.environ),
        description="Directory of the embedded servers, files and keys.",
    )
    database_url: SecretStr = Field(
        SecretStr(""), description="PostgreSQL 18 or newer, `postgresql://..`; empty: our own in the data directory."
    )
    redis_url: SecretStr = Field(
        SecretStr(""), description="Redis or Valkey, `redis://..` or `unix://..`; empty: our own in the data directory."
    )
    s3_endpoint: str = Field("", description="S3 endpoint as this server reaches it; empty: files on local disk.")
    s3_public_endpoint: str = Field("", description="S3 endpoint as browsers reach it; empty: the same.")
    s3_agent_endpoint: str = Field("", description="S3 endpoint as agents reach it; empty: the public one.")
    s3_region: str = Field("us-east-1", description="S3 region.")
    s3_bucket: str = Field("runyard", description="S3 bucket; it must exist.")
    s3_access_key: SecretStr = Field(SecretStr(""), description="S3 access key.")
    s3_secret_key: SecretStr = Field(SecretStr(""), description="S3 secret key.")
    secret_key: SecretStr = Field(
        SecretStr(""),
        description="Signs assignment tokens and file links; at least 32 characters; several by commas, newest first. "
        "Empty: made once in the data directory. Replicas share it.",
    )
    pepper: SecretStr = Field(
        SecretStr(""),
        description="Keys the hashes of credentials; at least 32 characters, never changed. Empty: made once in the "
        "data directory. Replicas share it.",
    )

    # How pools start agents.
    local_pools: Literal["auto", "on", "off"] = Field(
        "auto", description="Whether pools may run agents on this machine; auto: only with our own PostgreSQL."
    )
    kubernetes: str = Field(
        "", description="Where pools run agents as Jobs: `in-cluster`, or a path of a kubeconfig; empty: nowhere."
    )
    kubernetes_namespace: str = Field(
        "runyard", pattern="^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", description="The namespace of those Jobs."
    )

    # Timings, in seconds.
    time_scale: float = Field(1.0, gt=0, le=10, description="Multiplies every timing below; for tests.")
    beat: float = Field(5.0, gt=0, description="Agents give a sign of life this often.")
    lease: float = Field(30.0, gt=0, description="An agent without a sign of life for so long is lost.")
    sweep: float = Field(5.0, gt=0, description="Ended leases are looked for this often.")
    acknowledge: float = Field(
        10.0, gt=0, description="An agent acknowledges a task within this, else another gets it."
    )
    cancel_grace: float = Field(
        10.0, ge=0, description="From the request to stop until a cancelled process group is killed."
    )
    signed_url: float = Field(900.0, ge=1, description="Signed links of files live so long.")
    session: float = Field(14 * 86400.0, ge=60, description="A session without use ends after this.")
    linger: float = Field(
        0.0, ge=0, le=4, description="A stopping server still accepts for so long: proxies see `/readyz` turn red."
    )
    operation: float = Field(10.0, gt=0, description="A GraphQL operation takes at most so long.")

    # Sizes.
    max_upload: int = Field(5 * 2**30, ge=1, description="Bytes of one input file at most.")
    max_output: int = Field(100 * 2**30, ge=1, description="Bytes of one output at most.")
    max_task_outputs: int = Field(1024 * 2**30, ge=1, description="Bytes of all outputs of one task at most.")
    database_connections: int = Field(12, ge=4, le=500, description="Connections to PostgreSQL of one process at most.")

    # What it shows and says.
    introspection: Literal["signed_in", "everyone", "nobody"] = Field(
        "signed_in", description="Who may read the schema through introspection."
    )
    metrics_token: SecretStr = Field(
        SecretStr(""), description="Bearer token that opens `/metrics`; empty: open to loopback alone."
    )
    otlp_endpoint: str = Field(
        "",
        description="Where traces are sent by OTLP/HTTP, `http://host:4318`; empty: what OTEL_EXPORTER_OTLP_ENDPOINT "
        "says, or nowhere. Needs `runyard[otel]`.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What is logged.")
    log_format: Literal["text", "json"] = Field("text", description="Lines for people, or one JSON object a line.")
    failpoint: str = Field("", description="For tests of faults: `POINT:ACTION[@N]` as in `app/failpoints.py`.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("public_url", "s3_endpoint", "s3_public_endpoint", "s3_agent_endpoint"):
            _check_url(name, getattr(self, name))
        for name in ("secret_key", "pepper"):
            for part in _split(getattr(self, name).get_secret_value()):
                if len(part) < 32:
                    raise ValueError(f"{name}: expected at least 32 characters, found {len(part)}")
        if self.s3_endpoint and not (self.s3_access_key.get_secret_value() and self.s3_secret_key.get_secret_value()):
            raise ValueError("s3_access_key, s3_secret_key: expected both beside s3_endpoint")
        if not self.roles or self.roles - ROLES:
            raise ValueError(f"role: expected some of {', '.join(sorted(ROLES))}, found {self.role!r}")
        if self.embedded and self.workers * self.database_connections > EMBEDDED_CONNECTIONS:
            raise ValueError(
                f"workers, database_connections: expected at most {EMBEDDED_CONNECTIONS} connections of all workers to "
                f"our own PostgreSQL, found {self.workers * self.database_connections}"
            )
        if self.metrics_port and self.metrics_port + self.workers > 65536:
            raise ValueError(f"metrics_port: expected a port for each of {self.workers} workers")
        if self.lease < 3 * self.beat:
            raise ValueError(f"lease: expected at least three beats ({3 * self.beat:g} s), found {self.lease:g} s")
        if self.host not in LOOPBACK and not self.public_url:
            raise ValueError(f"public_url: expected the address that browsers use, since host is {self.host}")
        return self

    @property
    def embedded(self) -> bool:
        """Whether this process starts its own PostgreSQL."""
        return not self.database_url.get_secret_value()

    @property
    def starts_local(self) -> bool:
        """Whether pools may start agents as processes of this one."""
        return self.local_pools == "on" or (self.local_pools == "auto" and self.embedded)

    def not_shared(self) -> list[str]:
        """The settings that keep a second replica from serving beside this one; empty where it may."""
        shared = {
            "database_url": self.database_url.get_secret_value(),
            "redis_url": self.redis_url.get_secret_value(),
            "s3_endpoint": self.s3_endpoint,
            "secret_key": self.secret_key.get_secret_value(),
            "pepper": self.pepper.get_secret_value(),
        }
        return [name for name, value in shared.items() if not value]

    @property
    def roles(self) -> frozenset[str]:
        """What this process does, of `ROLES`."""
        return frozenset(_split(self.role))

    def environment(self) -> dict[str, str]:
        """The variables by which another process has these very settings, secrets included."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        plain = {
            name: each.get_secret_value() if isinstance(each, SecretStr) else each for name, each in values.items()
        }
        return {f"{PREFIX}{name.upper()}": str(value) for name, value in plain.items()}

    @property
    def origins(self) -> frozenset[str]:
        """Exact browser origins that may use a cookie on a socket."""
        own = urlsplit(self.public_url)
        return frozenset([f"{own.scheme}://{own.netloc}", *_split(self.allowed_origins)])

    def seconds(self, name: str) -> float:
        """A timing by its name, scaled."""
        return float(getattr(self, name)) * self.time_scale

    def secret_keys(self) -> tuple[str, ...]:
        return tuple(_split(self.secret_key.get_secret_value()))


def load(overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read the environment and `overrides`; raises `WrongSetting` with one sentence for each wrong setting."""
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known | FOREIGN)
    if unknown:
        raise WrongSetting(f"{', '.join(unknown)}: no such setting; `runyard serve --help` lists them all")
    standard = {"otlp_endpoint": os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")}
    try:
        return Settings(**(({} if os.environ.get(f"{PREFIX}OTLP_ENDPOINT") else standard) | dict(overrides or {})))
    except ValidationError as error:
        raise WrongSetting("; ".join(_sentence(fault) for fault in error.errors())) from None


FOREIGN = frozenset(
    f"{PREFIX}{name}"
    for name in ("AGENT_KEY", "AGENT_CONFIG", "URL", "KEY", "PARAMETERS", "INPUTS", "OUTPUTS", "EVENTS_FD")
)
"""Variables of the agent and of what it runs, which may stand in the same environment."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One option for each setting, so that `--help` shows them all."""
    group = parser.add_argument_group("settings (each also as RUNYARD_<NAME> in the environment)")
    for name, default, description in table():
        group.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            metavar="VALUE",
            default=None,
            help=f"{description} [{default}]".replace("%", "%%"),
        )


def overrides(arguments: argparse.Namespace) -> dict[str, str]:
    """What was given on the command line."""
    given = {name: getattr(arguments, name, None) for name in Settings.model_fields}
    return {name: value for name, value in given.items() if value is not None}


def table() -> list[tuple[str, str, str]]:
    """(name, default, description) of every setting, in order."""
    rows = []
    for name, info in Settings.model_fields.items():
        default = "~/.local/share/runyard" if name == "data_dir" else info.default
        shown = default.get_secret_value() if isinstance(default, SecretStr) else default
        rows.append(
            (
                name,
                "empty" if shown == "" else f"{shown:g}" if isinstance(shown, float) else str(shown),
                info.description or "",
            )
        )
    return rows


def default_data_dir(environment: Mapping[str, str]) -> Path:
    """`$XDG_DATA_HOME/runyard` for a person, `/var/lib/runyard` for root."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Path("/var/lib/runyard")
    home = environment.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(home) / "runyard"


def _split(text: str) -> Sequence[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _check_url(name: str, url: str) -> None:
    parts = urlsplit(url)
    if url and (parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query):
        raise ValueError(f"{name}: expected http(s)://host[:port], found {url!r}")


def _sentence(fault: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in fault["loc"])
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not where:
        return message
    return f"{where} ({PREFIX}{where.upper()}): {message}, found {str(fault.get('input'))[:80]!r}"


def markdown() -> str:
    """The settings as the documentation's table."""
    lines = [
        "# Configuration",
        "",
        "Generated by `make docs` from `app/settings.py`. Each setting is `RUNYARD_<NAME>` in the environment or",
        "`--<name>` on the command line of `runyard serve`; the command line wins. A wrong one stops the start with a",
        "sentence that names it.",
        "",
        "| setting | default | meaning |",
        "|---|---|---|",
    ]
    lines += [f"| `{PREFIX}{name.upper()}` | `{default}` | {description} |" for name, default, description in table()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
