"""What a stage is run with, whatever it does: where to compute, what to continue, whom to tell."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from apm_core.runtime.device import Compute
from apm_core.runtime.resume import Resume

Progress = Callable[[int, int, dict[str, float]], None]  # done, total, figures worth showing


def silent(done: int, total: int, figures: dict[str, float]) -> None:
    """The progress callback that shows nothing."""
    del done, total, figures


@dataclass(frozen=True)
class Run:
    """The circumstances of one job; none of them changes its result, apart from the precision."""

    compute: Compute
    resume: Resume | None = None  # None: a killed job starts anew
    progress: Progress = silent
    started: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        """Time that the job has taken, that of killed runs before this one included."""
        earlier = self.resume.earlier if self.resume else 0.0
        return earlier + time.monotonic() - self.started
