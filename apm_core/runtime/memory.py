"""How much memory a job takes, and how many images at a time fit into a budget."""

import ctypes
import math
import os
from collections.abc import Callable
from pathlib import Path

import torch

from apm_core.errors import ConfigError
from apm_core.runtime.device import Compute

GB = 1e9
HOME_SHARE = 0.25  # of the memory of a GPU, or of a job's limit, for one thing that stays there
STATUS = Path("/proc/self/status")
SYSTEM = Path("/proc/meminfo")
RESET_PEAK = Path("/proc/self/clear_refs")  # 5 sets the peak resident size to the present one


def home(size: int, compute: Compute, limit: int | None) -> torch.device:
    """Where `size` bytes live that a job needs all the time: on the device, or in host memory when
    they would take more than a quarter of the device, or of the `limit` in bytes of the job.
    """
    if compute.device.type == "cpu":
        return compute.device
    if limit is None:
        limit = torch.cuda.get_device_properties(compute.device).total_memory
    return compute.device if size <= HOME_SHARE * limit else torch.device("cpu")


def peak(compute: Compute) -> int:
    """Peak bytes since the last `reset_peak`: reserved on a GPU, resident of the process on a CPU.

    Where the system has no /proc, the peak of the whole life of the process.
    """
    if compute.device.type == "cuda":
        return torch.cuda.max_memory_reserved(compute.device)
    if STATUS.is_file():
        return _kilobytes(STATUS, "VmHWM") * 1024
    import resource  # not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def obtainable(compute: Compute) -> int | None:
    """Bytes of host memory that this process has or can still get beside the others of the machine;
    None on a GPU, and where the system has no /proc.
    """
    if compute.device.type != "cpu" or not (STATUS.is_file() and SYSTEM.is_file()):
        return None
    return available(compute.device) + _kilobytes(STATUS, "VmRSS") * 1024


def available(device: torch.device) -> int:
    """Bytes that can be claimed now, of a GPU or of the host, where the file cache counts as free;
    all of the host's where the system has no /proc.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if SYSTEM.is_file():
        # not SC_AVPHYS_PAGES, which leaves out the cache that reading the data has just filled
        return _kilobytes(SYSTEM, "MemAvailable") * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _kilobytes(file: Path, name: str) -> int:
    """The number behind `name` in a file of Linux's about memory."""
    line = next(line for line in file.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def reset_peak(compute: Compute) -> None:
    """Give freed memory back and start a new measurement."""
    if compute.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(compute.device)
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    if RESET_PEAK.exists():
        RESET_PEAK.write_text("5")


def limit(size: int, compute: Compute) -> None:
    """Let torch's allocator take at most `size` bytes of a GPU; nothing is done on a CPU."""
    if compute.device.type == "cuda":
        total = torch.cuda.get_device_properties(compute.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, size / total), compute.device)


def is_exhausted(error: BaseException | None) -> bool:
    """Whether `error` says that the device, or torch's allocator on the CPU, is out of memory, or
    was raised while that was handled: a capture that runs out ends with an error of its own.
    """
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def largest_segment(
    need: Callable[[int], int], images: int, limit: int, key: str, *, probes: int = 8
) -> tuple[int, int]:
    """The largest segment, of at most `images`, whose need stays within `limit` bytes.

    `need(segment)` measures: it is asked for one image, then for what a straight line through the
    measurements promises, until that fits. Segments are evened out, so that no short one is left
    over.

    Returns: the segment and its need in bytes.
    Raises ConfigError, naming `key`, when one image at a time is already too much.
    """
    fits, fit_need = 1, need(1)
    if fit_need > limit:
        raise ConfigError(
            f"{key}: {limit / GB:.3g} GB is less than the {fit_need / GB:.3g} GB that one image at"
            " a time needs: raise it, or remove it"
        )
    too_many = images + 1
    guess = min(images, 8)
    for _ in range(probes):
        if not fits < guess < too_many:
            break
        try:
            needed = need(guess)
        except RuntimeError as error:
            if not is_exhausted(error):
                raise
            needed = limit + 1
        if needed > limit:
            too_many = guess
            guess = (fits + too_many) // 2
            continue
        slope = max(1.0, (needed - fit_need) / (guess - fits))
        fits, fit_need = guess, needed
        guess = min(too_many - 1, fits + int((limit - needed) / slope))
    return math.ceil(images / math.ceil(images / fits)), fit_need
