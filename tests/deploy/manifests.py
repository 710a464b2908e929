"""The files of deploy/ as a test reads them."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def compose() -> dict[str, Any]:
    """docker-compose.yml."""
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def variables(file: Path) -> dict[str, str]:
    """The variables of an env file."""
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def environment(service: str) -> dict[str, str]:
    """What a service of the composition has in its environment, with the examples of its env files."""
    described = compose()["services"][service]
    found: dict[str, str] = {}
    for name in described.get("env_file", []):
        found |= variables(ROOT / f"{name}.example")
    return found | {name: str(value) for name, value in described.get("environment", {}).items()}
