"""A preset under several seeds: other real images, teachers and networks for each.

    python -m benchmarks.seeds presets/ablation_tiles_cpu.yaml --seeds 3 --set dataset.data_dir=data

Each run is the pipeline itself in a folder of its own; what is there is not done again. Give the
files of one IPC at a time: the rows of its entries take their place in benchmarks/results/NAME.json
beside those of other IPCs, NAME being that of the first file. A row has, for each set, the mean
accuracy of its ConvNets.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from apm_core.scores import summarize
from benchmarks import tables
from benchmarks.measure import RESULTS, ROOT, machine, write
from benchmarks.pipeline import Config, config_of, plan_of, results_of


def main() -> None:
    """Run what is missing, then write and print the table of all that are there."""
    given = options(__doc__, "seeds")
    config, name = config_of(given.presets, given.set), given.presets[0].stem
    found = []
    for seed in range(given.seeds):
        folder = (given.folder / name / f"seed{seed}").resolve()
        found.append(results_of({**config, "seed": seed}, folder, cores=given.cores))
    path = RESULTS / f"{name}.json"
    known = json.loads(path.read_text())["rows"] if path.is_file() else []
    rows = [row for row in known if row["ipc"] != config["ipc"]] + rows_of(config, found)
    report = {**machine(), "rows": sorted(rows, key=lambda row: row["ipc"])}
    print(tables.ablation(report))
    write(path, report)


def options(description: str | None, name: str) -> argparse.Namespace:
    """The options of a command that runs a preset under several seeds, in folder work/`name`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
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
