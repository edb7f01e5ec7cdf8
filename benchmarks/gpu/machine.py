"""What the machine is: GPU and driver, device files, compilers, versions, memory."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

from apm_core.runtime.device import Compute
from apm_core.runtime.memory import GB
from benchmarks.gpu.record import Entries, Figures
from benchmarks.gpu.setup import Setup

PROGRAMS = {  # what is asked of each
    "nvidia-smi": [],
    "c++": ["--version"],
    "g++": ["--version"],
    "clang++": ["--version"],
    "nvcc": ["--version"],
}
DEVICE_FILES = ("nvidia*", "nvidia-caps/*", "dri/*")


def entries(setup: Setup) -> Entries:
    """One entry."""
    return {"machine": lambda: figures(setup.compute)}


def figures(compute: Compute) -> Figures:
    """All that may explain the other figures."""
    found = {
        "programs": {name: answer(name, *arguments) for name, arguments in PROGRAMS.items()},
        "device files": sorted(str(p) for glob in DEVICE_FILES for p in Path("/dev").glob(glob)),
        "versions": {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "system": platform.platform(),
        },
        "cores": os.cpu_count(),
        "host memory, GB": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB,
        "free disk, GB": shutil.disk_usage(Path.cwd()).free / GB,
        "precision": compute.precision,
    }
    if compute.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(compute.device)
        properties = torch.cuda.get_device_properties(compute.device)
        found["gpu"] = {
            "name": properties.name,
            "compute capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory, GB": total / GB,
            "free, GB": free / GB,
            "count": torch.cuda.device_count(),
        }
    return found


def answer(program: str, *arguments: str) -> list[str] | None:
    """The lines that a program prints; None: there is no such program."""
    if not shutil.which(program):
        return None
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)
    return (done.stdout + done.stderr).splitlines()
