"""Whether a set is better than its control, or whether networks differ as much by chance."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apm_core import scores

SIGNS = {"gain": "\u25b2", "loss": "\u25bc", "noise": "\u2248", "open": "?"}
WORDS = {"gain": "real gain", "loss": "real loss", "noise": "noise", "open": "one network"}
LEGEND = ", ".join(f"{sign} {WORDS[verdict]}" for verdict, sign in SIGNS.items())


@dataclass(frozen=True)
class Difference:
    """The accuracies of a set minus those of its control, in percentage points.

    Attributes:
        mean: over pairs of networks.
        interval: 95 %, of the mean; None for a single pair.
    """

    mean: float
    interval: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        """A key of `SIGNS`: real where zero is outside the interval."""
        if self.interval is None:
            return "open"
        low, high = self.interval
        return "gain" if low > 0 else "loss" if high < 0 else "noise"

    def __str__(self) -> str:
        ends = f" [{self.interval[0]:+.1f}, {self.interval[1]:+.1f}]" if self.interval else ""
        return f"{SIGNS[self.verdict]} {self.mean:+.1f}{ends}"


def difference(results: Mapping[str, Any], entry: str, key: str, network: str) -> Difference | None:
    """That of `entry` from its control in the scores `key` of `network`, or None without a control
    that has as many networks: network i of both has the same random streams, so they are paired.
    """
    methods = results["methods"]
    control = methods[entry].get("control")  # results from before have none
    if not control or control["entry"] not in methods:
        return None
    both = [methods[name].get(key, {}).get(network) for name in (entry, control["entry"])]
    if None in both or both[0]["n"] != both[1]["n"]:
        return None
    a, b = (score["runs"] for score in both)
    if len(a) == 1:
        return Difference(a[0] - b[0], None)
    mean, *interval = scores.paired_interval(a, b)
    return Difference(mean, (interval[0], interval[1]))
