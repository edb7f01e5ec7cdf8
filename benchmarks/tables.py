"""The committed figures as the README's tables: `python -m benchmarks.tables`."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.measure import RESULTS


def rows(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *lines])


def by_path(report: dict[str, Any], cell: Callable[[dict[str, Any]], str]) -> list[list[str]]:
    """A line for each path, with its cell for each size."""
    lines: dict[str, list[str]] = {}
    for size in report["sizes"]:
        for path in size["paths"]:
            lines.setdefault(path["path"], [path["path"]]).append(cell(path))
    return list(lines.values())


def steps(report: dict[str, Any]) -> str:
    """Images a second of training steps, how many times the plain loop, share of the rate."""

    def cell(path: dict[str, Any]) -> str:
        share = f", {path['% of rate']:.0f} %" if path["% of rate"] else ""
        return f"{path['images/s']:,.0f}, {path['x plain']['median']:.1f}x{share}"

    header = [f"width {size['width']}, batch {size['batch']}" for size in report["sizes"]]
    return rows(["training step, images/s", *header], by_path(report, cell))


def updates(report: dict[str, Any]) -> str:
    """Milliseconds of image updates, and how many times the plain loop."""

    def cell(path: dict[str, Any]) -> str:
        return f"{path['ms']:,.0f}, {path['x plain']['median']:.1f}x"

    header = [f"width {size['width']}, {10 * size['ipc']} images" for size in report["sizes"]]
    return rows(["image update, ms", *header], by_path(report, cell))


def peaks(report: dict[str, Any]) -> str:
    """Peak megabytes without S as one quantity grows."""
    lines: dict[str, list[str]] = {}
    for row in report["growth"]:
        quantity, value = row["grows"].split()
        lines.setdefault(quantity, []).append(f"{value}: {row['MB without S']:.0f}")
    return rows(
        ["peak without S, MB", "as it grows"], [[k, ", ".join(v)] for k, v in lines.items()]
    )


def precisions(reports: Sequence[dict[str, Any]]) -> str:
    """Accuracy in bf16 and in float32."""
    lines = []
    for report in reports:
        for what, by in report["results"].items():
            scores = [f"{by[p]['mean']:.2f} ± {by[p]['std']:.2f}" for p in ("bf16", "float32")]
            lines.append([f"{report['preset']}, {what}", *scores, str(by["bf16"]["n"])])
    return rows(["accuracy, %", "bf16", "float32", "n"], lines)


def ablation(report: dict[str, Any]) -> str:
    """Held-out accuracy of each variant of APM by IPC: mean and deviation over sets."""
    found = {(row["variant"], row["ipc"]): row["sets"] for row in report["rows"]}
    sizes = sorted({ipc for _, ipc in found})

    def cell(variant: str, ipc: int) -> str:
        score = found.get((variant, ipc))
        if not score:
            return ""
        deviation = f" ± {score['std']:.1f}" if score["n"] > 1 else ""
        return f"{score['mean']:.1f}{deviation}"

    names = dict.fromkeys(variant for variant, _ in found)
    lines = [[name, *(cell(name, ipc) for ipc in sizes)] for name in names]
    return rows(["held-out accuracy, %", *(f"IPC {ipc}" for ipc in sizes)], lines)


def all_tables() -> list[str]:
    """Every table that `python -m benchmarks` and its modules measure."""

    def read(name: str) -> dict[str, Any]:
        return json.loads((RESULTS / f"{name}.json").read_text())

    compared = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("precision_*.json"))]
    return [
        steps(read("step_cpu")),
        updates(read("round_cpu")),
        peaks(read("memory_cpu")),
        precisions(compared),
        ablation(read("ablation_cpu")),
    ]


if __name__ == "__main__":
    print("\n\n".join(all_tables()))
