"""Whether a job asks for a GPU, told without loading torch."""

from pathlib import Path

from apm_core.settings.compute import ComputeSettings

DEVICES = Path("/dev")


def gpu_here() -> bool:
    """Whether this machine has the device files of a GPU; torch would take seconds to say it."""
    return any(DEVICES.glob("nvidia[0-9]*")) or (DEVICES / "dxg").exists()


def gpus_of(compute: ComputeSettings, *, local: bool) -> int:
    """GPUs that a job asks for. On this machine (`local`) device auto asks for one if there is one,
    so that the jobs of a machine without run side by side; on a cluster always.
    """
    absent = compute.device == "auto" and local and not gpu_here()
    return 0 if compute.device == "cpu" or absent else 1
