"""Stage 7: what all stages measured, in one file per run and one line per method."""

import csv
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from apm_core import scores
from apm_core.distilled import DistilledSet
from apm_core.errors import ArtifactError
from apm_core.runtime import store
from apm_core.settings.stages import CollectSettings
from apm_core.settings.text import fingerprint

REFERENCE = "random"  # entry
SUMMARY = "summary.csv"
# of a metric, by protocol
PREFIXES = {"own": "", "hard": "hard_label_", "plain": "plain_", "kd": "online_label_"}
Results = dict[str, Any]


def collect(
    dataset: str,
    settings: CollectSettings,
    sets: Mapping[str, DistilledSet],
    files: Sequence[str | Path],
) -> Results:
    """The results file: `sets` by entry, and the score files of the evaluation, ceiling and NAS
    stages, which say themselves what they measured. Every metric of a set is taken over.

    Raises ArtifactError for a file that was measured on another set or other data, or under labels
    of another teacher than an earlier one.
    """
    pieces = pieces_of(sets, files)
    _require_one_teacher(files, pieces)
    ceiling = {
        piece["measured"]["network"]: _with_rate(piece, piece["metrics"]["accuracy"])
        for piece in pieces
        if piece["measured"]["stage"] == "ceiling"
    }
    methods = {}
    for entry, one in sets.items():
        own = [piece for piece in pieces if piece["measured"].get("entry") == entry]
        control = settings.controls.get(entry)
        methods[entry] = _method(one, ceiling, own)
        methods[entry]["control"] = control.model_dump() if control else None
    _add_scores(methods, ceiling)
    return {
        "run": about_run(dataset, settings, sets, pieces, ("evaluate", "ceiling", "nas")),
        "ceiling": ceiling,
        "methods": methods,
    }


def about_run(
    dataset: str,
    settings: CollectSettings,
    sets: Mapping[str, DistilledSet],
    pieces: Sequence[Mapping[str, Any]],
    stages: Sequence[str],
) -> dict[str, Any]:
    """What was run, where, when, and how long its `stages` took that measured the `pieces`."""
    record = settings.record
    return {
        "dataset": dataset,
        "ipc": settings.ipc,
        "seed": settings.seed,
        "settings": record,
        "fingerprint": fingerprint(record),
        "data_fingerprint": _data(sets),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": store.versions(),
        "device": _device(sets),
        "seconds": _seconds(sets, pieces, stages),
    }


def pieces_of(
    sets: Mapping[str, DistilledSet], files: Sequence[str | Path]
) -> list[dict[str, Any]]:
    """The figures of score files of `sets`; ArtifactError for one of another set or other data."""
    made_from = {entry: one.artifact.content for entry, one in sets.items()}
    return [_piece(file, _data(sets), made_from) for file in files]


def _data(sets: Mapping[str, DistilledSet]) -> str:
    """The content of the data that the sets were distilled from."""
    return next(iter(sets.values())).artifact.inputs["data"]


def _piece(file: str | Path, data: str, made_from: Mapping[str, str]) -> dict[str, Any]:
    """The figures of a score file, after a look at what was measured."""
    figures, inputs = store.read_json(file, "scores")
    entry = figures["measured"].get("entry")
    wanted = {"data": data}
    if entry is not None:
        wanted["distilled"] = made_from.get(entry)
    if teacher := _teacher(figures):
        wanted["teacher"] = teacher
    if inputs != wanted:
        raise ArtifactError(
            f"{file}: was measured on another set or other data: delete {file} and run again"
        )
    return figures


def _teacher(figures: Mapping[str, Any]) -> str | None:
    """The content of the file whose first network labelled online, if one did."""
    online = figures.get("protocols", {}).get("kd")
    return online["teacher"]["content"] if online else None


def _require_one_teacher(files: Sequence[str | Path], pieces: Sequence[Mapping[str, Any]]) -> None:
    """Raise ArtifactError unless one teacher gave all online labels: what is compared differs in
    the images alone.
    """
    labelled = {f: teacher for f, p in zip(files, pieces, strict=True) if (teacher := _teacher(p))}
    first = next(iter(labelled), None)
    for file, teacher in labelled.items():
        if teacher != labelled[first]:
            raise ArtifactError(
                f"{file}: another teacher labelled than for {first}: delete both and run again"
            )


def _method(
    distilled: DistilledSet, ceiling: Mapping[str, Any], pieces: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    measures: dict[str, Any] = {f"{prefix}accuracy": {} for prefix in PREFIXES.values()}
    nas = None
    for piece in pieces:
        what = piece["measured"]
        if what["stage"] == "nas":
            nas = {key: value for key, value in piece.items() if key != "measured"}
            continue
        for protocol, one in piece["protocols"].items():
            for metric, score in one["metrics"].items():
                key = PREFIXES[protocol] + metric
                measures.setdefault(key, {})[what["network"]] = _with_rate(one, score)
    for network, score in measures["accuracy"].items():
        full = ceiling.get(network)
        score["recovery"] = score["mean"] / full["mean"] if full else None
    info = distilled.artifact.info
    stored = distilled.image_bytes + distilled.label_bytes
    return {
        "images": len(distilled),
        "tiles": distilled.tiles,
        "image_bytes": distilled.image_bytes,
        "label_bytes": distilled.label_bytes,
        "compression": info["real_bytes"] / stored,
        **measures,
        "lrs": None,
        "ars": None,
        "nas": nas,
        "cost": {
            "teacher_seconds": info["teacher_seconds"],
            "distill_seconds": info["distill_seconds"],
            "peak_memory_bytes": info["peak_memory_bytes"],
            "device": info["device"],
            "precision": info["precision"],
        },
    }


def _add_scores(methods: dict[str, Any], ceiling: Mapping[str, Any]) -> None:
    """LRS and ARS of DD-Ranking on the first architecture that has all the accuracies they need."""
    random = methods.get(REFERENCE)
    if random is None:
        return
    for name, method in methods.items():
        if name == REFERENCE:
            continue
        for network, score in method["accuracy"].items():
            hard = method["hard_label_accuracy"].get(network)
            if method["lrs"] is None and hard and network in ceiling:
                method["lrs"] = scores.lrs(
                    real_hard=ceiling[network]["mean"],
                    syn_hard=hard["mean"],
                    syn_any=score["mean"],
                    random_any=random["accuracy"][network]["mean"],
                )
            plain = method["plain_accuracy"].get(network)
            if method["ars"] is None and plain:
                method["ars"] = scores.ars(
                    syn_aug=score["mean"],
                    random_aug=random["accuracy"][network]["mean"],
                    syn_plain=plain["mean"],
                    random_plain=random["plain_accuracy"][network]["mean"],
                )


def _with_rate(scores: Mapping[str, Any], score: Mapping[str, Any]) -> dict[str, Any]:
    """One of the scores of some trainings, with their learning rate, and who labelled online."""
    teacher = {"teacher": scores["teacher"]} if "teacher" in scores else {}
    return {**score, "lr": scores["recipe"]["lr"], **teacher}


def _device(sets: Mapping[str, DistilledSet]) -> str:
    return ", ".join(sorted({s.artifact.info["device"] for s in sets.values()}))


def _seconds(
    sets: Mapping[str, DistilledSet], pieces: Sequence[Mapping[str, Any]], stages: Sequence[str]
) -> dict[str, float]:
    """Seconds per stage, over all entries; each pool of networks, and each ranking by the full
    data, once.
    """
    infos = [one.artifact.info for one in sets.values()]
    seconds = {
        "teachers": sum({info["teacher_seconds"] for info in infos}),  # a pool's are its own
        "distill": sum(info["distill_seconds"] for info in infos),
        **dict.fromkeys(stages, 0.0),
    }
    for piece in pieces:
        seconds[piece["measured"]["stage"]] += piece["seconds"]
    rankings = [piece for piece in pieces if piece["measured"]["stage"] == "nas"]
    shared = [one["search"]["by_full_data"] for one in rankings]
    shared += [one["baselines"].get("short", {}).get("cost") for one in rankings]
    for once in {cost["seconds"] for cost in shared if cost}:
        seconds["nas"] += once
    return seconds


def summarize_folder(folder: Path) -> None:
    """Write `summary.csv`, one line per method of every results file NAME_ipcN.json in `folder`;
    unreadable files are refused.
    """
    rows = []
    for file in sorted(folder.glob("*_ipc*[0-9].json")):
        results, _ = store.read_json(file, "results")
        rows += [_row(results, name) for name in results["methods"]]
    networks = sorted({key for row in rows for key in row if key.endswith("_mean")})
    columns = ["dataset", "ipc", "method", "images", "bytes", "compression", "teacher_seconds"]
    columns += ["distill_seconds", "spearman"]
    columns += [c for key in networks for c in (key, key.removesuffix("_mean") + "_std")]
    with store.atomic_path(folder / SUMMARY) as temporary, temporary.open("w", newline="") as out:
        writer = csv.DictWriter(out, columns)
        writer.writeheader()
        writer.writerows(rows)


def _row(results: Results, name: str) -> dict[str, Any]:
    run, method = results["run"], results["methods"][name]
    row = {
        "dataset": run["dataset"],
        "ipc": run["ipc"],
        "method": name,
        "images": method["images"],
        "bytes": method["image_bytes"] + method["label_bytes"],
        "compression": round(method["compression"], 2),
        "teacher_seconds": round(method["cost"]["teacher_seconds"], 1),
        "distill_seconds": round(method["cost"]["distill_seconds"], 1),
        "spearman": method["nas"] and method["nas"]["spearman"]["mean"],
    }
    kinds = {"accuracy": "", "hard_label_accuracy": "_hard", "online_label_accuracy": "_online"}
    for kind, label in kinds.items():
        for network, score in method.get(kind, {}).items():  # results from before have fewer kinds
            row[f"{network}{label}_mean"] = round(score["mean"], 3)
            row[f"{network}{label}_std"] = round(score["std"], 3)
    return row
