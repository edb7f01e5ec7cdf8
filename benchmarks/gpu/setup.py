"""What every part is told: where to compute, at which sizes, where the data lie."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from apm_core.errors import ApmError
from apm_core.runtime.device import Compute, choose


@dataclass(frozen=True)
class Setup:
    """The circumstances of a run; plain values, so that another process can have them too."""

    device: str = "auto"
    compile: str = "on"
    quick: bool = False  # tiny sizes: does it run?
    data: Path | None = None  # folder with the files of CIFAR-10
    deterministic: bool = False

    @cached_property
    def compute(self) -> Compute:
        """The device in its default precision, chosen for this process. Its notes are errors:
        figures of a fallback would pass for those of what was meant.
        """
        return choose(self.device, "auto", self.compile, refuse, deterministic=self.deterministic)


def refuse(note: str) -> None:
    """Raise ApmError with the note."""
    raise ApmError(note)
