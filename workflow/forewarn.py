"""One line before a long run: how many hours it will take, and what to do about it.

Estimates need torch, which the process of the workflow does without and may not have: a process of
their own makes them, and whatever happens there, the run goes on.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from gpu import gpu_here

LIMIT = 60  # seconds for the estimate: a folder of very many files may take longer
HOURS = 1.0  # of a run, from which the line is shown


def warning(config: Mapping[str, Any]) -> str | None:
    """What to tell before a run of `config`; None: it is short, or nothing is known of it."""
    try:
        done = subprocess.run(
            [sys.executable, __file__],
            input=json.dumps(config, default=str),
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.strip() or None


def line(config: Mapping[str, Any]) -> str | None:
    """The warning, by the speeds that the library has of devices; None for a short run.

    Raises ApmError for a run that cannot start.
    """
    from apm_core.estimate.size import size_of
    from apm_core.estimate.speed import expected, reckoned, told
    from apm_core.estimate.work import works
    from apm_core.settings.plan import Plan
    from apm_core.settings.run import RunSettings

    plan = Plan(RunSettings.of(config))
    size = size_of(plan)
    if size is None:
        return None
    work = list(works(plan, size))
    cpu, gpu = (sum(expected(reckoned(device), plan, work).values()) for device in ("cpu", "cuda"))
    wanted = plan.settings.compute.device
    own = gpu if wanted.startswith("cuda") or (wanted == "auto" and gpu_here()) else cpu
    if own < HOURS * 3600:
        return None
    return (
        f"The whole run will take about {told(cpu)} on two CPU cores without bf16 (with AMX, up to"
        f" ten times less), {told(gpu)} on a GPU (reckoned): `apm plan CONFIG` measures this"
        " machine and says which stages, `apm fit FOLDER --hours 1` writes a shorter run"
    )


if __name__ == "__main__":
    print(line(json.load(sys.stdin)) or "")
