"""Does bf16 cost accuracy? A preset, whole, under several seeds, in float32 and in bf16.

    python -m benchmarks.precision presets/digits_ipc10.yaml --seeds 5 --set evaluate.networks=3

Each run is the pipeline itself in a folder of its own; a run that is there is not done again. The
figures go to benchmarks/results/precision_PRESET.json: test accuracy of the ConvNets trained on
APM's images, and of the teachers, by seed.
"""

from pathlib import Path
from typing import Any

from apm_core.distilled import load
from apm_core.runtime import store
from apm_core.scores import summarize
from benchmarks.measure import RESULTS, ROOT, machine, parser_of, write
from benchmarks.pipeline import config_of, results_of

PRECISIONS = ("bf16", "float32")


def compared(preset: Path, settings: list[str]) -> dict[str, Any]:
    """The config of `preset`, cut to what is compared: APM, and ConvNets with its labels."""
    config = config_of([preset], settings)
    config["distill"]["methods"] = ["apm"]
    config["evaluate"] |= {
        "architectures": ["convnet"],
        "overrides": {},
        "hard_labels": [],
        "plain": [],
    }
    config["evaluate"]["ceiling"]["architectures"] = []
    config["nas"]["networks"] = 0
    return config


def run(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run the pipeline in `folder` unless it has run, and return its figures."""
    precision = config["compute"]["precision"]
    record = folder / f"{precision}.json"
    if not record.is_file():
        name = f"{config['dataset']['name']}_ipc{config['ipc']}"
        results = results_of(config, folder)
        artifact = load(folder / f"results/{name}.apm.zarr.zip").artifact
        teachers = [
            store.read(path, "teachers")
            for path in sorted(folder.glob("work/*/pools/teachers.*/*.zip"))
        ]
        store.write_json(
            record,
            "precision",
            {
                "accuracy": results["methods"]["apm"]["accuracy"]["convnet"]["mean"],
                "teachers": [score for t in teachers for score in t.info["test_accuracy"]],
                "seconds": results["run"]["seconds"],
                "precision": artifact.info["precision"],
            },
        )
    return store.read_json(record, "precision")[0]


def main() -> None:
    """Run what is missing, print the comparison and write it."""
    parser = parser_of(__doc__)
    parser.add_argument("preset", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "work/precision")
    options = parser.parse_args()
    config = compared(options.preset, options.set)
    runs = {precision: [] for precision in PRECISIONS}
    for seed in range(options.seeds):
        folder = (options.folder / options.preset.stem / f"seed{seed}").resolve()
        for precision in PRECISIONS:
            compute = {**config["compute"], "precision": precision}
            runs[precision].append(run({**config, "seed": seed, "compute": compute}, folder))
    table = {
        what: {
            precision: summarize(
                [value for r in of for value in r[what]]
                if what == "teachers"
                else [r[what] for r in of]
            )
            for precision, of in runs.items()
        }
        for what in ("accuracy", "teachers")
    }
    for what, by in table.items():
        print(
            what,
            "; ".join(f"{p} {s['mean']:.2f} ± {s['std']:.2f} (n={s['n']})" for p, s in by.items()),
        )
    write(
        RESULTS / f"precision_{options.preset.stem}.json",
        {
            **machine(),
            "preset": options.preset.stem,
            "changes": [c for c in options.set if not c.startswith("dataset.data_dir")],
            "results": table,
            "runs": runs,
        },
    )


if __name__ == "__main__":
    main()
