"""The command `runyard-agent`: reads its arguments, then runs the agent.

Exit codes: 0 ended as asked, 1 killed or a fault of the agent, 2 wrong configuration, 3 refused by the server for good.
"""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence

from app import __version__, logs
from app.agent.agent import work
from app.agent.config import load
from app.agent.errors import ConfigError

EXIT_CONFIG = 2

DESCRIPTION = """\
Connects this machine to a Runyard server and runs the tasks that it is given. It dials out only and opens no port.
Only commands that the configuration file names are ever run."""

EPILOG = """\
configuration file (TOML; every option but --key may stand there under its own name, with _ for -):
  url = "https://runyard.example"
  key_file = "/etc/runyard/agent.key"
  slots = 2
  labels = ["render"]
  [commands.render]
  argv = ["blender", "-b", "{scene}", "--", "{runyard.parameters}"]
  env = { THREADS = "4" }
  inherit = ["LICENSE_SERVER"]

environment: RUNYARD_AGENT_URL, RUNYARD_AGENT_KEY, RUNYARD_AGENT_CONFIG, RUNYARD_AGENT_STATE_DIR

signals: the first SIGTERM or SIGINT drains (takes nothing new, finishes what runs, exits); the second ends what runs as
failed; the third kills it. exit codes: 0 ended as asked, 1 killed, 2 wrong configuration, 3 refused by the server."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="runyard-agent", description="The agent of Runyard.")
    top.add_argument("--version", action="version", version=f"runyard-agent {__version__}")
    run = top.add_subparsers(dest="verb", required=True, metavar="run").add_parser(
        "run",
        help="connect and run tasks",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("--url", help="the server's address, such as https://runyard.example")
    run.add_argument(
        "--key", help="the agent key (ak-...); other users can see it here, a key file or the environment is better"
    )
    run.add_argument("--key-file", help="a file that holds the agent key")
    run.add_argument("--config", metavar="FILE", help="the configuration file (TOML)")
    run.add_argument("--name", help="the agent's name, unique in its team; default: the host's name")
    run.add_argument("--slots", type=int, help="how many tasks at once; default: 1")
    run.add_argument(
        "--labels", metavar="A,B", help="labels beside those that are found: os, architecture, cpus, memory, gpu"
    )
    run.add_argument(
        "--state-dir",
        metavar="DIR",
        help="where its secret and working directories are; default: ~/.local/state/runyard-agent",
    )
    run.add_argument("--log-format", choices=("text", "json"), help="how it logs to standard error; default: text")
    run.add_argument(
        "--no-drain", action="store_const", const=True, help="the first signal ends running work, as the second would"
    )
    run.add_argument(
        "--drain-timeout",
        type=float,
        metavar="SECONDS",
        help="a drain ends what still runs after so long, as the second signal would; default: never",
    )
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    given = vars(parser().parse_args(argv))
    given.pop("verb")
    try:
        config = load(given, os.environ)
        logs.configure(format=config.log_format)
        with logs.bound(agent=config.name):
            return asyncio.run(work(config))
    except ConfigError as error:
        print(f"runyard-agent: {error}", file=sys.stderr)
        return EXIT_CONFIG
    except KeyboardInterrupt:
        return 1
    except Exception:
        logging.getLogger(__name__).exception("the agent ended by a fault of its own")
        return 1


if __name__ == "__main__":
    sys.exit(main())
