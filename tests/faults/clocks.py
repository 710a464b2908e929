"""Wall clocks that are wrong, for one process each: libfaketime, which leaves the monotonic clock alone."""

import os
from pathlib import Path

import pytest

REQUIRED = "REQUIRE_FAKETIME"
"""Set where a missing library must fail the tests and not skip them."""


def library() -> str:
    """Where libfaketime lies; skips the test where it is not installed and nobody requires it."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")) + sorted(
        Path("/usr/lib").glob("faketime/libfaketimeMT.so.1")
    )
    if not found and not os.environ.get(REQUIRED):
        pytest.skip("libfaketime is not installed (Debian's package `faketime`)")
    assert found, "libfaketime is not installed (Debian's package `faketime`)"
    return str(found[0])


def skewed(minutes: int) -> dict[str, str]:
    """The environment of a process whose clock is so far ahead, or behind where it is negative."""
    return {**_preloaded(), "FAKETIME": f"{minutes:+d}m"}


def jumping(file: Path) -> dict[str, str]:
    """The environment of a process whose clock jumps to what `jump` writes into the file."""
    jump(file, 0)
    return {**_preloaded(), "FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_CACHE_DURATION": "1"}


def jump(file: Path, minutes: int) -> None:
    """Let the clock be so far ahead from now on; it is noticed within a second."""
    file.write_text(f"{minutes:+d}m\n")


def _preloaded() -> dict[str, str]:
    return {"LD_PRELOAD": library(), "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
