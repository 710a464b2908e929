"""The explorer, built beside the demo where its bundle is not there yet and the sources are."""

import shutil
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from rich.console import Console

from app import children
from app.children import Child
from app.interfaces.web.pages import HERE, built

STOP = 2  # seconds


async def begin(stack: AsyncExitStack) -> Child | None:
    """Start the build at a low priority; None where the bundle is there, or there is nothing to build it from."""
    makefile = Path(HERE).parents[2] / "Makefile"
    if built() or not makefile.is_file() or not shutil.which("make"):
        return None
    child = await children.start(
        ["nice", "-n", "10", "make", "-C", str(makefile.parent), "explorer", f"PYTHON={sys.executable}"], guarded=True
    )
    stack.push_async_callback(child.stop, STOP)
    return child


async def announce(console: Console, building: Child | None, address: str) -> None:
    """Print the explorer's address once it is there, or why it is not."""
    if building is not None:
        console.print("Building the explorer...")
        await building.wait()
    if built():
        console.print(f"Explorer: [bold]{address}[/] (after signing in)")
    else:
        console.print(f"The explorer could not be built: run `make explorer`, then open {address}.")
