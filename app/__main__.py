"""The command line `runyard`: it reads its arguments and calls one function.

runyard serve      the API, the scheduler and their loops (our own PostgreSQL and Valkey where none are set)
runyard demo       a server, one agent and the example workflow, live in this terminal
runyard migrate    bring the tables to this version
runyard bucket     make the bucket of the settings where there is none
runyard link       a one-time sign-in link for a user, for whoever can run this on the server
runyard schema     print schema.graphql, or check it
"""

import argparse
import asyncio
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import uvloop

from app import __version__, logs, process, settings, wiring, workers
from app.demo.demo import DemoFailed, demo
from app.domain.errors import DomainError
from app.interfaces.graphql import sdl
from app.settings import Settings, WrongSetting
from app.wiring.resources import CannotOpen


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, 2 for a wrong setting."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments) or 0)
    except WrongSetting as wrong:
        return _say(f"runyard: {wrong}", 2)
    except (DemoFailed, DomainError, CannotOpen, workers.WorkerFailed) as failed:
        return _say(f"runyard: {failed}", 1)
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="runyard", description="Run a team's workflows on the team's own machines.")
    parser.add_argument("--version", action="version", version=f"runyard {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    _with_settings(verbs.add_parser("serve", help="serve the API"), _serve)
    show = _with_settings(verbs.add_parser("demo", help="run the example workflow on this machine"), _demo)
    show.add_argument("--once", action="store_true", help="end once the task has ended: 0 where it completed")
    show.add_argument("--out", type=Path, default=Path("runyard-demo"), help="where files are saved [./runyard-demo]")
    _with_settings(verbs.add_parser("migrate", help="bring the tables to this version"), _migrate)
    _with_settings(verbs.add_parser("bucket", help="make the bucket where there is none"), _bucket)
    link = _with_settings(verbs.add_parser("link", help="make a one-time sign-in link for a user"), _link)
    link.add_argument("email", help="the user's e-mail address")
    schema = verbs.add_parser("schema", help="print the GraphQL schema, or check a file against it")
    schema.add_argument("--check", type=Path, metavar="FILE", help="fail where FILE differs from the code")
    schema.set_defaults(run=_schema)
    return parser


def _with_settings(parser: argparse.ArgumentParser, run: Any) -> argparse.ArgumentParser:
    settings.add_arguments(parser)
    parser.set_defaults(run=run)
    return parser


def _serve(given: argparse.Namespace) -> int:
    chosen = _load(given)
    return _run(chosen, process.serve if chosen.workers == 1 else workers.serve)


def _demo(given: argparse.Namespace) -> int:
    chosen = _load(given, log_level=given.log_level or "warning")
    return _run(chosen, lambda chosen: demo(chosen, once=given.once, out=given.out, any_port=given.port is None))


def _migrate(given: argparse.Namespace) -> int:
    return _run(_load(given), wiring.migrate)


def _bucket(given: argparse.Namespace) -> int:
    return _run(_load(given), wiring.make_bucket)


def _link(given: argparse.Namespace) -> int:
    quiet = _load(given, log_level=given.log_level or "warning")
    return _run(quiet, lambda chosen: wiring.print_link(chosen, given.email))


def _schema(given: argparse.Namespace) -> int:
    if given.check is None:
        sys.stdout.write(sdl.text())
        return 0
    if given.check.is_file() and given.check.read_text() == sdl.text():
        return 0
    return _say(f"{given.check} differs from the code: write it anew with `runyard schema > {given.check}`", 1)


def _load(given: argparse.Namespace, **more: str) -> Settings:
    loaded = settings.load({**settings.overrides(given), **more})
    logs.configure(format=loaded.log_format, level=loaded.log_level)
    return loaded


def _run(chosen: Settings, command: Any) -> int:
    work: Coroutine[Any, Any, int | None] = command(chosen)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work) or 0


def _say(sentence: str, code: int) -> int:
    sys.stderr.write(f"{sentence}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
