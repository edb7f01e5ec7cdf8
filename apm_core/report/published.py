"""Accuracies that papers state, as `published.toml` has them with their sources."""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from apm_core.data import public_size

FILE = Path(__file__).with_name("published.toml")


@dataclass(frozen=True)
class Published:
    """One published accuracy."""

    method: str
    ipc: int
    bytes: int  # of the images as float32, labels not counted
    accuracy: float  # percent
    source: str


def published(dataset: str, methods: Iterable[str] | None = None) -> list[Published]:
    """What papers state of `methods`, or (None) of all, on a data set by its source's name; empty
    where nothing is known of it.
    """
    wanted, found = None if methods is None else set(methods), []
    for table in tomllib.loads(FILE.read_text(encoding="utf-8"))["tables"]:
        for method, accuracies in table.get(dataset, {}).items():
            if wanted is not None and method not in wanted:
                continue
            for ipc, accuracy in accuracies.items():
                size = 4 * int(ipc) * public_size(dataset).values
                found.append(Published(method, int(ipc), size, accuracy, table["source"]))
    return found
