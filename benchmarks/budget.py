"""How many rounds of each method fit into a time budget on this machine?

    python -m benchmarks.budget presets/compare_cifar10_cpu.yaml --seconds 100

Makes the data and the pools that the methods of the config need, rehearses a round of each and
prints an overlay with their rounds, to be pasted into the preset: rounds, not seconds, decide what
a run does, so that it can be repeated.
"""

import argparse
import json
from pathlib import Path

import torch
import yaml

from apm_core import methods
from apm_core.methods.base import Job
from apm_core.nets.spec import Spec
from apm_core.runtime.device import choose
from benchmarks.measure import ROOT
from benchmarks.pipeline import Plan, config_of, data_of, pool_of

REHEARSALS = 2  # the first compiles


def main() -> None:
    """Print the rounds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("presets", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--folder", type=Path, default=ROOT / "work/budget")
    options = parser.parse_args()
    config = config_of(options.presets, options.set)
    torch.set_num_threads(config["compute"]["threads"])
    plan, compute = Plan(config), choose(config["compute"]["device"], "auto", "auto", print)
    data = data_of(config, options.folder)
    rounds = {}
    for name in plan.methods:
        entry = methods.entry(name)
        if not entry.iterative:
            continue
        pool = entry.needs and pool_of(config, options.folder, entry.needs, data, compute)
        settings = json.loads(plan.distill(name))
        spec = Spec.of(settings, data.shape) if "network" in settings else None
        last = settings["rounds"]
        job = Job(data, pool, compute, config["ipc"], 0, last, config["seed"], network=spec)
        method = methods.build(name, settings)
        state = method.init(job)
        for _ in range(REHEARSALS):
            _, seconds = method.rehearse(state, compute.clock)
        rounds[name] = {"rounds": max(1, round(options.seconds / seconds))}
        print(f"{name}: {seconds:.3g} s a round", flush=True)
    print(yaml.safe_dump({"methods": rounds}, sort_keys=False))


if __name__ == "__main__":
    main()
