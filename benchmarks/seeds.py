"""A preset under several seeds: other real images, teachers and networks for each.

    python -m benchmarks.seeds presets/ablation_tiles_cpu.yaml --seeds 3 --set dataset.data_dir=data

Each run is the pipeline itself in a folder of its own, which all presets laid over the first one
share; what is there is not done again. The figures go to benchmarks/results/NAME.json, NAME being
that of the last preset: for each entry a row that has, for each set, the mean accuracy of its
ConvNets.
"""

import argparse
from pathlib import Path
from typing import Any

from apm_core.scores import summarize
from benchmarks import tables
from benchmarks.measure import RESULTS, ROOT, machine, parser_of, write
from benchmarks.pipeline import Config, config_of, plan_of, results_of


def main() -> None:
    """Run what is missing, then write and print the table of all that are there."""
    given = options(__doc__, "seeds")
    config, found = config_of(given.presets, given.set), []
    for seed in range(given.seeds):
        folder = (given.folder / given.presets[0].stem / f"seed{seed}").resolve()
        found.append(results_of({**config, "seed": seed}, folder, cores=given.cores))
    report = {**machine(), "rows": rows_of(config, found)}
    print(tables.ablation(report))
    write(RESULTS / f"{given.presets[-1].stem}.json", report)


def options(description: str | None, name: str) -> argparse.Namespace:
    """The options of a command that runs a preset under several seeds, in folder work/`name`."""
    parser = parser_of(description)
    parser.add_argument("presets", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "work" / name)
    parser.add_argument("--cores", default="all", help="of the pipeline")
    return parser.parse_args()


def rows_of(config: Config, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each entry of the runs `found`, one of each seed."""
    plan, rows = plan_of(config), []
    for entry in plan.entries:
        sets = [run["methods"][entry] for run in found]
        scores = [one["accuracy"]["convnet"] for one in sets]
        rows.append(
            {
                "ipc": config["ipc"],
                "variant": entry,
                "sets": summarize([score["mean"] for score in scores]),
                "networks": scores[0]["n"],
                "seconds": sum(one["cost"]["distill_seconds"] for one in sets) / len(sets),
                "rounds": plan.distill(entry).rounds,
                "bytes": sets[0]["image_bytes"] + sets[0]["label_bytes"],
            }
        )
    return rows


if __name__ == "__main__":
    main()
