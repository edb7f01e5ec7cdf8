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
from apm_core.settings.text import fingerprint

REFERENCE_METHOD = "random"
SUMMARY = "summary.csv"
Results = dict[str, Any]


def collect(
    dataset: str,
    settings: Mapping[str, Any],
    sets: Mapping[str, DistilledSet],
    files: Sequence[str | Path],
) -> Results:
    """The results file: `sets` by method, and the score files of the evaluation, ceiling and NAS
    stages.

    Score files are known by their place: ceiling/NETWORK.json,
    evaluate/ipcN.METHOD/NETWORK.PROTOCOL.json and nas/ipcN.METHOD.json.
    """
    data = next(iter(sets.values())).artifact.inputs["data"]
    made_from = {f"ipc{one.ipc}.{name}": one.artifact.content for name, one in sets.items()}
    pieces = {tuple(Path(file).parts[-3:]): _piece(file, data, made_from) for file in files}
    ceiling = {
        Path(name).stem: _score(piece)
        for (_, folder, name), piece in pieces.items()
        if folder == "ceiling"
    }
    methods = {
        method: _method(method, distilled, ceiling, pieces) for method, distilled in sets.items()
    }
    _add_scores(methods, ceiling)
    return {
        "run": {
            "dataset": dataset,
            "ipc": settings["ipc"],
            "seed": settings["seed"],
            "settings": dict(settings),
            "fingerprint": fingerprint(settings),
            "data_fingerprint": data,
            "date": datetime.now(UTC).date().isoformat(),
            "versions": store.versions(),
            "device": _device(sets),
            "seconds": _seconds(sets, pieces),
        },
        "ceiling": ceiling,
        "methods": methods,
    }


def _piece(file: str | Path, data: str, made_from: Mapping[str, str]) -> dict[str, Any]:
    """The figures of a score file, after a look at what was measured: `data`, and the set that
    `made_from` has for its place, if any.
    """
    folder, name = Path(file).parts[-2:]
    if folder == "ceiling":
        kind, wanted = "ceiling", {"data": data}
    else:
        kind = "agreement" if folder == "nas" else "evaluation"
        place = Path(name).stem if folder == "nas" else folder
        wanted = {"data": data, "distilled": made_from.get(place)}
    figures, inputs = store.read_json(file, kind)
    if None not in wanted.values() and inputs != wanted:
        raise ArtifactError(
            f"{file}: was measured on another set or other data: delete {file} and run again"
        )
    return figures


def _method(
    name: str, distilled: DistilledSet, ceiling: Mapping[str, Any], pieces: Mapping[tuple, Any]
) -> dict[str, Any]:
    protocols: dict[str, dict[str, Any]] = {"own": {}, "hard": {}, "plain": {}}
    for (_, folder, file), piece in pieces.items():
        if folder == f"ipc{distilled.ipc}.{name}":
            network, protocol, _ = file.split(".")
            protocols[protocol][network] = _score(piece)
    for network, score in protocols["own"].items():
        full = ceiling.get(network)
        score["recovery"] = score["mean"] / full["mean"] if full else None
    info = distilled.artifact.info
    stored = distilled.image_bytes + distilled.label_bytes
    nas = [
        p
        for (_, folder, file), p in pieces.items()
        if (folder, file) == ("nas", f"ipc{distilled.ipc}.{name}.json")
    ]
    return {
        "images": len(distilled),
        "image_bytes": distilled.image_bytes,
        "label_bytes": distilled.label_bytes,
        "compression": info["real_bytes"] / stored,
        "accuracy": protocols["own"],
        "hard_label_accuracy": protocols["hard"],
        "plain_accuracy": protocols["plain"],
        "lrs": None,
        "ars": None,
        "nas": nas[0] if nas else None,
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
    random = methods.get(REFERENCE_METHOD)
    if random is None:
        return
    for name, method in methods.items():
        if name == REFERENCE_METHOD:
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


def _score(piece: Mapping[str, Any]) -> dict[str, Any]:
    figures = {key: piece[key] for key in ("mean", "std", "n", "runs")}
    return {**figures, "lr": piece["recipe"]["lr"]}


def _device(sets: Mapping[str, DistilledSet]) -> str:
    return ", ".join(sorted({s.artifact.info["device"] for s in sets.values()}))


def _seconds(sets: Mapping[str, DistilledSet], pieces: Mapping[tuple, Any]) -> dict[str, float]:
    """Seconds per stage, over all methods; the teachers once."""

    def total(select: str) -> float:
        return sum(
            p["seconds"] for (_, folder, _), p in pieces.items() if folder.startswith(select)
        )

    infos = [s.artifact.info for s in sets.values()]
    return {
        "teachers": max(info["teacher_seconds"] for info in infos),
        "distill": sum(info["distill_seconds"] for info in infos),
        "evaluate": total("ipc"),
        "ceiling": total("ceiling"),
        "nas": total("nas"),
    }


def summarize_folder(folder: Path) -> None:
    """Write `summary.csv`, one line per method of every results file in `folder`; unreadable files
    are refused.
    """
    rows = []
    for file in sorted(folder.glob("*_ipc*.json")):
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
    for kind, label in (("accuracy", ""), ("hard_label_accuracy", "_hard")):
        for network, score in method[kind].items():
            row[f"{network}{label}_mean"] = round(score["mean"], 3)
            row[f"{network}{label}_std"] = round(score["std"], 3)
    return row
