"""The committed figures as Markdown tables; `benchmarks.docs` puts them into the pages."""

from collections.abc import Callable, Sequence
from typing import Any

from apm_core.report import continual as continual_report
from apm_core.report.published import published
from apm_core.report.table import markdown as results
from apm_core.report.table import shown
from benchmarks.gpu.record import asked_and_measured

OURS = "apm_plus"
CONTROL = "random_plus"  # real images with the same labels and recipe
TILES = "_tiles"  # ends the names of entries whose images are tiles


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


def grown(report: dict[str, Any], header: str, figure: str, digits: int) -> str:
    """A figure as one quantity grows."""
    lines: dict[str, list[str]] = {}
    for row in report["growth"]:
        quantity, value = row["grows"].split()
        lines.setdefault(quantity, []).append(f"{value}: {row[figure]:.{digits}f}")
    return rows([header, "as it grows"], [[k, ", ".join(v)] for k, v in lines.items()])


def peaks(report: dict[str, Any]) -> str:
    """Peak megabytes without S as one quantity grows."""
    return grown(report, "peak without S, MB", "MB without S", 0)


def seconds(report: dict[str, Any]) -> str:
    """Seconds of a round as one quantity grows."""
    return grown(report, "a round, s", "s", 2)


def side_by_side(report: dict[str, Any]) -> str:
    """Seconds for the same students by one process, or by several."""
    lines: dict[tuple[int, int], list[str]] = {}
    for row in report["side_by_side"]:
        key = row["processes"], row["threads each"]
        lines.setdefault(key, []).append(f"{row['s']:.1f}")
    students = report["side_by_side"][0]["students"]
    header = ["processes", "threads each", f"{students} students, s, in turns"]
    return rows(header, [[*map(str, key), ", ".join(times)] for key, times in lines.items()])


def gradients(report: dict[str, Any]) -> str:
    """Peak megabytes and seconds of each way to a trajectory's gradient, by its steps."""
    lines: dict[str, list[str]] = {}
    for row in report["rows"]:
        lines.setdefault(row["way"], [row["way"]]).append(f"{row['MB']:.0f} MB, {row['s']:.2f} s")
    most = max(row["steps"] for row in report["rows"])
    for row in report["rows"]:
        if row["steps"] == most:
            lines[row["way"]] += [f"{row['error']:.2g}", f"{row['cosine']:.2f}"]
    steps = dict.fromkeys(f"{row['steps']} steps" for row in report["rows"])
    return rows(["gradient", *steps, f"error, {most} steps", "cosine"], list(lines.values()))


def asked(report: dict[str, Any]) -> str:
    """What was asked of a GPU, and what was measured."""
    lines = [
        [f"{row['part']}, {row['entry']}: {row['figure']}", row["asked"], f"{row['measured']:,.4g}"]
        for row in asked_and_measured(report)
    ]
    return rows(["first figures of a GPU", "asked", "measured"], lines)


def versus(report: dict[str, Any]) -> str:
    """Images a second and share of the rate of two revisions, and their ratio."""
    lines = []
    for row in report["rows"]:
        cells = [
            f"{row[f'{key}, images/s']:,.0f}, {row[f'{key}, % of rate']:.0f} %"
            for key in ("before", "after")
        ]
        of = row["x before"]
        lines.append([row["work"], *cells, f"{of['median']:.2f} ({of['min']:.2f}-{of['max']:.2f})"])
    before, after = (report["revisions"][key] for key in ("before", "after"))
    return rows([f"{report['precision']}, images/s", before, after, "ratio"], lines)


def decoding(report: dict[str, Any]) -> str:
    """Images a second of each way to decode files, and how many times Pillow alone."""
    files, side = report["files"], report["side"]
    header = f"{files['width']}x{files['height']} JPEGs to {side}x{side}, images/s"
    lines = [
        [row["way"], f"{row['images/s']:,.0f}", f"{row['x Pillow']['median']:.2f}x"]
        for row in report["rows"]
    ]
    return rows([header, "", ""], lines)


def overhead(report: dict[str, Any]) -> str:
    """Where the quick start's wall time goes."""
    header = ["jobs", "wall, s", "training, s", "outside, %"]
    return rows(header, [[f"{report[name]:.0f}" for name in header]])


def chaos(report: dict[str, Any]) -> str:
    """Counts of kills, damaged files and their effects on the digits pipeline."""
    killed, damaged = report["killed"], report["damaged"]
    unlike = killed["contents unlike those of the unbroken run"]
    broken = killed["files not whole after a kill"]
    lines = [
        ["kills", killed["kills"]],
        ["of them while a file was being written", killed["while a file was being written"]],
        ["files not whole after a kill", len(broken)],
        ["runs that did not go on", len(killed["runs that did not go on"])],
        ["contents unlike those of the unbroken run", len(unlike)],
        ["files damaged", damaged["damages"]],
        ["of them not refused", len(damaged["missed"])],
    ]
    return rows(["the digits pipeline", ""], [[name, str(count)] for name, count in lines])


def precisions(*reports: dict[str, Any]) -> str:
    """Accuracy in bf16 and in float32."""
    lines = []
    for report in reports:
        for measure, scores in report["results"].items():
            pair = (scores["bf16"], scores["float32"])
            cells = [f"{score['mean']:.2f} ± {score['std']:.2f}" for score in pair]
            lines.append([f"{report['preset']}, {measure}", *cells, str(pair[0]["n"])])
    return rows(["accuracy, %", "bf16", "float32", "n"], lines)


def ablation(*reports: dict[str, Any]) -> str:
    """Held-out accuracy of each variant of APM by IPC: mean and deviation over sets."""
    measured = [row for report in reports for row in report["rows"]]
    scores = {(row["variant"], row["ipc"]): row["sets"] for row in measured}
    sizes = sorted({ipc for _, ipc in scores})

    def cell(variant: str, ipc: int) -> str:
        score = scores.get((variant, ipc))
        if not score:
            return ""
        deviation = f" ± {score['std']:.1f}" if score["n"] > 1 else ""
        return f"{score['mean']:.1f}{deviation}"

    names = dict.fromkeys(variant for variant, _ in scores)
    lines = [[name, *(cell(name, ipc) for ipc in sizes)] for name in names]
    return rows(["held-out accuracy, %", *(f"IPC {ipc}" for ipc in sizes)], lines)


def continual(report: dict[str, Any]) -> str:
    """Accuracy of each set as the memory of classes that come in steps."""
    return rows(*continual_report.rows(report))


def product(report: dict[str, Any]) -> str:
    """Accuracy and bytes of distilled sets in several forms: mean and deviation over sets."""
    lines = []
    for row in report["rows"]:
        score, kilobytes = row["sets"], (row["image_bytes"] / 1000, row["label_bytes"] / 1000)
        accuracy = f"{score['mean']:.1f} ± {score['std']:.1f}"
        lines.append(
            [f"{row['entry']}, {row['form']}", accuracy, *(f"{k:,.1f}" for k in kilobytes)]
        )
    return rows(["stored as", "accuracy, %", "images, kB", "labels, kB"], lines)


def summary(*reports: dict[str, Any]) -> str:
    """For each IPC: `OURS`, the best other system, `CONTROL` and the full data."""

    lines = []
    for report in reports:
        methods = report["methods"]
        scores = {name: result["accuracy"]["convnet"] for name, result in methods.items()}
        others = [n for n in scores if n != OURS and not n.startswith("random")]
        best = max(others, key=lambda name: scores[name]["mean"])
        images = f"{report['run']['ipc']} per class"
        cells = [shown(scores[OURS]), f"{best}: {shown(scores[best])}", shown(scores[CONTROL])]
        lines.append([images, *cells, shown(report["ceiling"]["convnet"])])
    header = ["images", OURS, "best other system", "random, same labels", "full data"]
    return rows(header, lines)


def published_size(*reports: dict[str, Any]) -> str:
    """For the same images of as many per class, of one run or several: `OURS` and its control
    beside the best that a paper states, in each form that a run has, plain pixels or tiles; and
    the full data.
    """

    def known_as(run: dict[str, Any]) -> str:
        """The public name of the data, which those read from a folder have before their width."""
        dataset = run["settings"]["dataset"]
        return dataset["name"].split("_")[0] if dataset["source"] == "folder" else dataset["source"]

    def best(name: str, ipc: int, form: str) -> str:
        known = [
            one
            for one in published(name)
            if one.ipc == ipc and one.method.endswith(TILES) == bool(form)
        ]
        first = max(known, key=lambda one: one.accuracy)
        return f"{first.method.removesuffix(TILES)}: {first.accuracy}"

    forms = [
        form for form in ("", TILES) if any(OURS + form in report["methods"] for report in reports)
    ]
    found: dict[tuple[str, int], tuple[dict[str, Any], dict[str, Any]]] = {}
    for report in reports:
        key = known_as(report["run"]), report["run"]["ipc"]
        methods, ceiling = found.setdefault(key, ({}, {}))
        methods.update(report["methods"])
        ceiling.update(report["ceiling"])
    lines = []
    for (name, ipc), (methods, ceiling) in found.items():
        cells = [f"{name}, {ipc} per class"]
        for form in forms:
            scores = (methods.get(one + form, {"accuracy": {}}) for one in (OURS, CONTROL))
            cells += [shown(one["accuracy"].get("convnet")) for one in scores]
            cells.append(best(name, ipc, form))
        lines.append([*cells, shown(ceiling.get("convnet"))])
    header = ["images"]
    for form in forms:
        header += [f"{OURS}, as tiles" if form else OURS, "real images", "best published"]
    return rows([*header, "full data"], lines)


TABLES: dict[str, Callable[..., str]] = {
    table.__name__: table
    for table in (
        ablation,
        asked,
        chaos,
        continual,
        decoding,
        gradients,
        overhead,
        peaks,
        precisions,
        product,
        published_size,
        seconds,
        side_by_side,
        steps,
        summary,
        updates,
        versus,
    )
} | {"results": results}
