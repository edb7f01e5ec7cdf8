"""Which options of APM earn their place? Each is switched beside one base, with equal work.

    python -m benchmarks.ablation --data-dir data --ipc 1 10 50

Real CIFAR-10 at the CPU preset. A tenth of the training split is held out and judges: nothing is
chosen on the test split. Every variant distils sets from different real images, with the same
number of passes of images through networks, and networks are trained on each from scratch. A set
that is there is not made again, so the command can be stopped and continued; several may run side
by side. The figures go to benchmarks/results/ablation_cpu.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import yaml

from apm_core import methods, store
from apm_core.device import choose
from apm_core.distill import distill
from apm_core.evaluate import train_and_test
from apm_core.merge import pool_labels
from apm_core.methods.base import Job
from apm_core.prepare import PreparedData
from apm_core.run import Run
from apm_core.scores import summarize
from apm_core.teachers import TeacherPool
from apm_core.train import Examples, Recipe
from benchmarks.measure import RESULTS, ROOT, machine, show, write
from benchmarks.pipeline import Plan, config_of, data_of, overlaid, pool_of

VARIANTS = ROOT / "benchmarks/ablation.yaml"


def measured(
    config: dict[str, Any], method: str, shard: int, data: PreparedData, pool: TeacherPool, run: Run
) -> dict[str, Any]:
    """Distil one set and train networks on it: their accuracies on the held-out images."""
    plan = Plan(config)
    settings = json.loads(plan.distill(method))
    rounds = settings.get("rounds", 0)
    job = Job(data, pool, run.compute, config["ipc"], shard, rounds, config["seed"])
    iterative = methods.entry(method).iterative
    result = distill(methods.build(method, settings), job, rounds=rounds + 1 if iterative else 0)
    seconds = run.seconds()
    merging = json.loads(plan.merge(method))
    targets = (
        result.classes
        if methods.entry(method).labels == "classes"
        else pool_labels(pool, result.images, merging, run.compute)
    )
    evaluation = json.loads(plan.evaluate("convnet", "own"))
    recipe = Recipe.of(merging["recipe"])
    recipe = recipe.with_epochs(evaluation["epochs"])
    scores = train_and_test(
        Examples(result.images, targets), data, recipe, evaluation, run, config["seed"], "ablation"
    )
    return {"accuracies": scores["runs"], "seconds": seconds, "rounds": rounds}


def main() -> None:
    """Make the sets that are missing, then write and print the table of those that are there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data")
    parser.add_argument("--folder", type=Path, default=ROOT / "work/ablation")
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10, 50])
    parser.add_argument("--sets", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", help="variants to make; the table shows all")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    plan = yaml.safe_load(VARIANTS.read_text())
    place = {"dataset": {"data_dir": str(options.data_dir.resolve())}}
    base = overlaid(config_of([]), plan["base"], place)
    compute = choose("auto", "auto", "auto", print)
    data = data_of(base, options.folder)
    pool = pool_of(base, options.folder, "teachers", data, compute)
    wanted = options.only or list(plan["variants"])
    for shard in range(options.sets):
        for ipc in options.ipc:
            for name in wanted:
                done = options.folder / f"ipc{ipc}/{name}.{shard}.json"
                if done.is_file() or ipc not in plan["variants"][name].get("ipc", [ipc]):
                    continue
                variant = plan["variants"][name]
                changes = [plan["ipc"][ipc], variant.get("config", {})]
                config = overlaid(base, {"ipc": ipc}, *changes)
                found = measured(config, variant["method"], shard, data, pool, Run(compute))
                done.parent.mkdir(parents=True, exist_ok=True)
                store.write_json(done, found)
                mean = summarize(found["accuracies"])["mean"]
                print(
                    f"IPC {ipc}, set {shard}, {name}: {mean:.2f}, {found['seconds']:.0f} s",
                    flush=True,
                )
    write(RESULTS / "ablation_cpu.json", {**machine(), "rows": table(plan, options.folder)})


def table(plan: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """For each IPC and variant, what was measured on all its sets."""
    rows = []
    for ipc in plan["ipc"]:
        for name in plan["variants"]:
            files = sorted((folder / f"ipc{ipc}").glob(f"{name}.[0-9]*.json"))
            sets = [store.read_json(file) for file in files]
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
    show("held-out accuracy", [{**row, "sets": f"{row['sets']['mean']:.2f}"} for row in rows])
    return rows


if __name__ == "__main__":
    main()
