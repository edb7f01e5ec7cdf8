"""How many GPUs a job asks for, determined without loading torch."""

from pathlib import Path

from apm_core.settings.compute import ComputeSettings

DEVICES = Path("/dev")


def gpu_here() -> bool:
    """Whether this machine has the device files of a GPU."""
    return any(DEVICES.glob("nvidia[0-9]*")) or (DEVICES / "dxg").exists()


def gpus_of(compute: ComputeSettings, *, local: bool) -> int:
    """The number of GPUs that a job asks for, 0 or 1.

    With device auto a job asks for one on a cluster, and on this machine (`local`) only if it has
    one: jobs of a machine without a GPU then run in parallel.
    """
    absent = compute.device == "auto" and local and not gpu_here()
    return 0 if compute.device == "cpu" or absent else 1
