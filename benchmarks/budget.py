"""How many rounds of each method fit into a time budget on this machine?

    python -m benchmarks.budget presets/compare_cifar10_cpu.yaml --seconds 100

Makes the data and the pools that the methods of the config need, rehearses a round of each and
prints an overlay with their rounds, to be pasted into the preset: rounds, not seconds, decide what
a run does, so that it can be repeated.
"""

from pathlib import Path

import torch
import yaml

from apm_core import methods
from apm_core.methods.base import Job
from apm_core.nets.spec import Spec
from apm_core.runtime.device import choose
from benchmarks.measure import ROOT, parser_of
from benchmarks.pipeline import Config, config_of, data_of, plan_of, pool_of

REHEARSALS = 2  # the first compiles


def main() -> None:
    """Print the rounds."""
    parser = parser_of(__doc__)
    parser.add_argument("presets", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--folder", type=Path, default=ROOT / "work/budget")
    options = parser.parse_args()
    config = config_of(options.presets, options.set)
    plan = plan_of(config)
    section = plan.settings.compute
    torch.set_num_threads(section.threads)
    compute = choose(section.device, section.precision, section.compile, print)
    data = data_of(config, options.folder)
    rounds = {}
    for name in plan.entries:
        settings, pool_name = plan.distill(name), plan.distill_pool(name)
        if settings.rounds is None:
            continue
        pool = pool_of(config, options.folder, pool_name, data, compute) if pool_name else None
        job = Job(
            data=data,
            pool=pool,
            compute=compute,
            ipc=settings.ipc,
            shard=0,
            rounds=settings.rounds,
            seed=settings.seed,
            network=Spec.of(settings.network, data.shape) if settings.network else None,
        )
        method = methods.build(settings)
        state = method.start(job)
        for _ in range(REHEARSALS):
            _, seconds = method.rehearse(state, compute.clock)
        rounds[name] = max(1, round(options.seconds / seconds))
        print(f"{name}: {seconds:.3g} s a round", flush=True)
    print(yaml.safe_dump(overlay_of(config, rounds), sort_keys=False))


def overlay_of(config: Config, rounds: dict[str, int]) -> Config:
    """The config's changes that give each entry its `rounds`: in the section of its method, or,
    for one that is spelled out, where it is.
    """
    entries = config["distill"]["methods"]
    overlay: Config = {"methods": {e: {"rounds": rounds[e]} for e in entries if named(e, rounds)}}
    if any(isinstance(entry, dict) for entry in entries):
        spelled = [
            {**entry, "rounds": rounds[entry["name"]]}
            if isinstance(entry, dict) and entry["name"] in rounds
            else entry
            for entry in entries
        ]
        overlay["distill"] = {"methods": spelled}
    return overlay


def named(entry: str | Config, rounds: dict[str, int]) -> bool:
    """Whether an entry is a method's name, one with rounds."""
    return isinstance(entry, str) and entry in rounds


if __name__ == "__main__":
    main()
