"""Which options of APM earn their place? Each is switched beside one base, with equal work.

    python -m benchmarks.ablation --data-dir data --ipc 1 10 50

Real CIFAR-10 at the CPU preset. A tenth of the training split is held out and judges: nothing is
chosen on the test split. Every variant distils sets from different real images, with the same
number of passes of images through networks, and networks are trained on each from scratch. A set
that is there is not made again, so the command can be stopped and continued. The figures go to
benchmarks/results/ablation_cpu.json.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import yaml

from apm_core import distilled
from apm_core.runtime import store
from apm_core.runtime.device import choose
from apm_core.runtime.run import Run
from apm_core.scores import summarize
from apm_core.stages.distill import distill_shard
from apm_core.stages.evaluate import evaluate
from apm_core.stages.merge import merge
from benchmarks import tables
from benchmarks.measure import RESULTS, ROOT, machine, write
from benchmarks.pipeline import Config, Plan, config_of, data_of, overlaid, pool_of

POOL = "aligned_teachers"  # that of all variants
VARIANTS = ROOT / "benchmarks/ablation.yaml"


@dataclass(frozen=True)
class Task:
    """One set to distil and to measure: all that a process of its own needs."""

    config: Config
    method: str
    shard: int
    folder: Path
    done: Path

    def run(self) -> dict[str, Any]:
        """Distil the set and train networks on it: their accuracies on the held-out images."""
        torch.set_num_threads(self.config["compute"]["threads"])
        plan, compute = Plan(self.config), choose("auto", "auto", "auto", print)
        data = data_of(self.config, self.folder)
        pool = pool_of(self.config, self.folder, POOL, data, compute)
        self.done.parent.mkdir(parents=True, exist_ok=True)
        paths = [self.done.with_suffix(f".{kind}.zarr.zip") for kind in ("shard", "set")]
        settings = json.loads(plan.distill(self.method))
        shard = distill_shard(paths[0], settings, self.shard, data, pool, Run(compute))
        merge(paths[1], json.loads(plan.merge(self.method)), paths[:1], data, pool, compute)
        evaluation = json.loads(plan.evaluate("convnet", "own"))
        scores = evaluate(distilled.load(paths[1]), data, evaluation, Run(compute))
        seconds, rounds = shard.info["seconds"], settings.get("rounds", 0)
        found = {"accuracies": scores["runs"], "seconds": seconds, "rounds": rounds}
        store.write_json(self.done, "ablation", found)
        return found


def main() -> None:
    """Make the sets that are missing, then write and print the table of all that are there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data")
    parser.add_argument("--folder", type=Path, default=ROOT / "work/ablation")
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--sets", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="sets made side by side")
    parser.add_argument("--only", nargs="+", help="variants to make; the table shows all")
    options = parser.parse_args()
    plan = yaml.safe_load(VARIANTS.read_text())
    place = {"dataset": {"data_dir": str(options.data_dir.resolve())}}
    base = overlaid(config_of([]), plan["base"], place)
    folder = options.folder.resolve()
    pool_of(base, folder, POOL, data_of(base, folder), choose("cpu"))
    tasks = []
    for shard, ipc, name in product(range(options.sets), options.ipc, plan["variants"]):
        variant, done = plan["variants"][name], folder / f"ipc{ipc}/{name}.{shard}.json"
        wanted = ipc in variant.get("ipc", [ipc]) and name in (options.only or [name])
        if wanted and not done.is_file():
            config = overlaid(base, {"ipc": ipc}, plan["ipc"][ipc], variant.get("config", {}))
            tasks.append(Task(config, variant["method"], shard, folder, done))
    # a process for each: torch keeps what it compiled, up to a limit
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), max_tasks_per_child=1) as workers:
        for task, found in zip(tasks, workers.map(Task.run, tasks), strict=True):
            mean = summarize(found["accuracies"])["mean"]
            name = f"{task.done.parent.name} {task.done.stem}"
            print(f"{name}: {mean:.2f} %, {found['seconds']:.0f} s", flush=True)
    report = {**machine(), "rows": found_rows(plan, folder)}
    print(tables.ablation(report))
    write(RESULTS / "ablation_cpu.json", report)


def found_rows(plan: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """For each IPC and variant, what was measured on all its sets."""
    rows = []
    for ipc in plan["ipc"]:
        for name in plan["variants"]:
            files = sorted((folder / f"ipc{ipc}").glob(f"{name}.[0-9]*.json"))
            sets = [store.read_json(file, "ablation")[0] for file in files]
            if sets:
                means = [summarize(one["accuracies"])["mean"] for one in sets]
                rows.append(
                    {
                        "ipc": ipc,
                        "variant": name,
                        "sets": summarize(means),
                        "networks": len(sets[0]["accuracies"]),
                        "seconds": sum(one["seconds"] for one in sets) / len(sets),
                        "rounds": sets[0]["rounds"],
                    }
                )
    return rows


if __name__ == "__main__":
    main()
