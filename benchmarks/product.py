"""What do fewer bits cost? The sets of a preset in several forms of `distill.product`.

    python -m benchmarks.product presets/digits_ipc10.yaml --set distill.methods=[apm]

Each set is distilled once for each seed, then merged and evaluated in each form, by the pipeline
itself in a folder for each seed; what is there is not done again. The figures go to
benchmarks/results/product_NAME.json, NAME being that of the last preset.
"""

from pathlib import Path
from typing import Any

from apm_core.runtime import store
from apm_core.scores import summarize
from apm_core.settings.product import Product
from benchmarks import seeds, tables
from benchmarks.measure import RESULTS, machine, write
from benchmarks.pipeline import Config, config_of, overlaid, results_of

FORMS: dict[str, dict[str, Any]] = {
    "float32": {},
    "labels in 16 bits": {"label_bits": 16},
    "5 largest logits": {"top": 5},
    "2 largest logits": {"top": 2},
    "pixels in uint8": {"pixels": "uint8"},
    "uint8, 16 bits, 5 largest": {"pixels": "uint8", "label_bits": 16, "top": 5},
}


def main() -> None:
    """Measure what is missing, then write and print the table."""
    options = seeds.options(__doc__, "product")
    config, name = config_of(options.presets, options.set), options.presets[-1].stem
    found: dict[str, list[dict[str, Any]]] = {form: [] for form in FORMS}
    for seed in range(options.seeds):
        folder = (options.folder / name / f"seed{seed}").resolve()
        for form, changes in FORMS.items():
            product = Product(**changes).model_dump()
            changed = overlaid(config, {"seed": seed, "distill": {"product": product}})
            found[form].append(measured(changed, folder, form, options.cores))
    report = {
        **machine(),
        "rows": [row for form, sets in found.items() for row in rows(form, sets)],
    }
    print(tables.product(report))
    write(RESULTS / f"product_{name}.json", report)


def measured(config: Config, folder: Path, form: str, cores: str) -> dict[str, Any]:
    """The part of the results on the sets in one form; kept, for the next form overwrites them."""
    path = folder / f"{form.replace(' ', '_').replace(',', '')}.json"
    if not path.is_file():
        methods = results_of(config, folder, cores=cores)["methods"]
        kept = ("accuracy", "image_bytes", "label_bytes")
        store.write_json(path, "product", {e: {k: m[k] for k in kept} for e, m in methods.items()})
    return store.read_json(path, "product")[0]


def rows(form: str, sets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each entry, of its sets in one form."""
    return [
        {
            "entry": entry,
            "form": form,
            "sets": summarize([one[entry]["accuracy"]["convnet"]["mean"] for one in sets]),
            "networks": sets[0][entry]["accuracy"]["convnet"]["n"],
            "image_bytes": sets[0][entry]["image_bytes"],
            "label_bytes": sets[0][entry]["label_bytes"],
        }
        for entry in sets[0]
    ]


if __name__ == "__main__":
    main()
