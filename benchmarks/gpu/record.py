"""The figures of a run in one JSON file, each there as soon as it is measured.

Below the head (device, versions, date) stand the parts, and in each its entries by name: figures,
or figures and an "error". An entry that was begun and not ended says so, whatever ended it.
"""

import faulthandler
import json
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import save

Figures = dict[str, Any]
Entries = Mapping[str, Callable[[], Figures]]  # by name, in order
BEGUN = {"type": "Unfinished", "message": "stopped, killed or crashed"}
TRACEBACK_LINES = 15


class Record:
    """The file `path` of a run that `head` describes; one of another device or version is dropped.

    `call` names the command: what failed in it is not tried again before the next one.
    """

    def __init__(self, path: Path, head: dict[str, Any], call: str) -> None:
        self.path, self.call = path, call
        there = load(path)
        same = all(there.get(key) == value for key, value in head.items() if key != "date")
        self.report = there if same else {**head, "parts": {}}

    def measure(self, part: str, entries: Entries, limit: float | None = None) -> bool:
        """Measure the entries of `part` that are due, up to the first that fails; whether none did.

        An error may leave a GPU unusable for the process, so the rest belongs to another one. An
        entry that takes longer than `limit` seconds ends the process.
        """
        for name, function in entries.items():
            if not self._due(part, name):
                continue
            self._put(part, name, {"error": BEGUN})
            started = time.perf_counter()
            if limit:
                faulthandler.dump_traceback_later(limit, exit=True)
            try:
                figures = function()
                json.dumps(figures, allow_nan=False)
            except Exception as error:  # whatever it is, it is recorded
                figures = {"error": described(error)}
            finally:
                if limit:
                    faulthandler.cancel_dump_traceback_later()
            seconds = time.perf_counter() - started
            self._put(part, name, {**figures, "entry took, s": seconds})
            if "error" in figures:
                return False
        return True

    def _due(self, part: str, name: str) -> bool:
        found = self.report["parts"].get(part, {}).get(name)
        return found is None or ("error" in found and found["call"] != self.call)

    def _put(self, part: str, name: str, figures: Figures) -> None:
        self.report["parts"].setdefault(part, {})[name] = {**figures, "call": self.call}
        save(self.path, self.report)


def load(path: Path) -> dict[str, Any]:
    """The report in the file, empty where there is none."""
    return json.loads(path.read_text()) if path.is_file() else {}


def forget(path: Path, parts: list[str]) -> None:
    """Remove what is known of `parts`."""
    report = load(path)
    if report:
        kept = {name: of for name, of in report["parts"].items() if name not in parts}
        save(path, {**report, "parts": kept})


def described(error: Exception) -> dict[str, Any]:
    """Type, message and the end of the traceback of an error."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return {
        "type": type(error).__name__,
        "message": str(error),
        "traceback": lines[-TRACEBACK_LINES:],
    }


def failures(report: dict[str, Any]) -> list[str]:
    """One line for each entry that has an error."""
    return [
        f"{part}, {name}: {of['error']['type']}: {of['error']['message']}"
        for part, entries in report.get("parts", {}).items()
        for name, of in entries.items()
        if "error" in of
    ]


def asked_and_measured(report: dict[str, Any]) -> list[Figures]:
    """A row for each figure that a target was set for."""
    return [
        {"part": part, "entry": name, "figure": figure, "asked": asked, "measured": of[figure]}
        for part, entries in report.get("parts", {}).items()
        for name, of in entries.items()
        for figure, target in of.get("asked", {}).items()
        for asked in (" ".join(f"{how} {value:,}" for how, value in target.items()),)
    ]
