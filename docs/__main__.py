"""Write the generated parts of the documentation anew: `make docs`. `--check` fails where one is stale."""

import re
import sys
from pathlib import Path

from app import settings
from app.domain import task

HERE = Path(__file__).parent


def generated() -> dict[Path, str]:
    """Every generated file with what it should hold."""
    architecture = HERE / "architecture.md"
    return {
        HERE / "configuration.md": settings.markdown(),
        architecture: _between(architecture.read_text(), "state picture", f"```mermaid\n{task.picture()}\n```"),
    }


def _between(text: str, name: str, body: str) -> str:
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"expected {begin} and {end} in the text, found neither")
    return pattern.sub(lambda _: f"{begin}\n{body}\n{end}", text)


def main(argv: list[str]) -> int:
    """Write, or with `--check` compare; returns the exit code."""
    stale = [path for path, text in generated().items() if not path.is_file() or path.read_text() != text]
    if "--check" not in argv:
        for path in stale:
            path.write_text(generated()[path])
        return 0
    for path in stale:
        sys.stderr.write(f"{path.relative_to(HERE.parent)} is stale: run `make docs`\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
