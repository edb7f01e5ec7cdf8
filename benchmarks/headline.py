"""The order in which benchmarks/headline.sh asks for the files of a run, one line for each step:

    python -m benchmarks.headline CONFIG...

A line is a name and files. First the set of each entry with the ConvNet's accuracy, entry by entry,
then the other networks, then all but the ranking of architectures, which is no step of these.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from apm_core.settings.plan import Plan
from benchmarks.pipeline import config_of, plan_of


def steps(plan: Plan) -> Iterator[tuple[str, list[str]]]:
    """Names and files of the steps of a run."""
    dataset, ipc = plan.settings.dataset.name, plan.settings.ipc
    first, *others = plan.settings.evaluate.architectures

    def scores(entry: str, network: str) -> str:
        return f"work/{dataset}/evaluate/ipc{ipc}.{entry}/{network}.json"

    for entry in plan.entries:
        yield entry, [scores(entry, first)]
    for network in others:
        yield network, [scores(entry, network) for entry in plan.entries]
    yield "results", [f"results/{dataset}_ipc{ipc}.json"]


if __name__ == "__main__":
    for name, files in steps(plan_of(config_of(map(Path, sys.argv[1:])))):
        print(name, *files)
