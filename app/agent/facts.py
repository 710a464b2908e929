"""What the agent finds out about its machine: labels, on which tasks are placed, and facts, for people to read.

Labels: the operating system (`linux`), the architecture (`x86_64`), `cpus-8`, `memory-64gib`, and with a GPU of
NVIDIA `gpu`, `gpu-rtx-4090` for each model and `vram-24gib` for the smallest of them.
"""

import asyncio
import os
import platform
import re
import shutil
from typing import Any

import psutil

from app import children

GPU_QUERY = ("--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
GPU_PATIENCE = 10.0  # seconds; a driver that hangs must not keep the agent from starting
GIB = 1024**3
MIB_PER_GIB = 1024

_ARCHITECTURES = {"amd64": "x86_64", "aarch64": "arm64"}
_SYSTEMS = {"darwin": "macos"}


async def discover(given: tuple[str, ...]) -> tuple[list[str], dict[str, Any]]:
    """Labels (those found, then those given, each once) and facts."""
    gpus = await _gpus()
    machine = _machine()
    labels = [machine["os"], machine["arch"], f"cpus-{machine['cpus']}", f"memory-{machine['memoryBytes'] // GIB}gib"]
    if gpus:
        labels += ["gpu", *(f"gpu-{_slug(gpu['name'])}" for gpu in gpus)]
        labels.append(f"vram-{min(gpu['vramMib'] for gpu in gpus) // MIB_PER_GIB}gib")
    return list(dict.fromkeys([*labels, *given])), {**machine, "gpus": gpus}


def _machine() -> dict[str, Any]:
    system, arch = platform.system().lower(), platform.machine().lower()
    return {
        "os": _SYSTEMS.get(system, system),
        "osRelease": platform.release(),
        "arch": _ARCHITECTURES.get(arch, arch),
        "cpus": _cpus(),
        "memoryBytes": psutil.virtual_memory().total,
        "hostname": platform.node(),
        "python": platform.python_version(),
    }


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))  # what this process may use, not what the machine has
    return os.cpu_count() or 1


async def _gpus() -> list[dict[str, Any]]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        child = await children.start([program, *GPU_QUERY], stdout=children.PIPE)
    except OSError:
        return []
    output = b""
    try:
        async with asyncio.timeout(GPU_PATIENCE):
            output = await child.stdout.read() if child.stdout else b""
    except TimeoutError:
        return []
    finally:
        await child.stop(0)
    return [gpu for line in output.decode(errors="replace").splitlines() if (gpu := _gpu(line))]


def _gpu(line: str) -> dict[str, Any] | None:
    name, _, memory = (part.strip() for part in line.rpartition(","))
    if not name.isprintable() or not name or not memory.isdecimal():
        return None  # nvidia-smi also prints its faults on this stream
    return {"name": name[:100], "vramMib": int(memory)}


def _slug(name: str) -> str:
    words = re.findall(r"[a-z0-9]+", name.lower())
    return "-".join(word for word in words if word not in ("nvidia", "geforce"))[:60] or "unknown"
