"""Which entry of a run is the control of another: real images under the same labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apm_core.settings.method import MethodSettings
from apm_core.settings.methods.random import RandomSettings
from apm_core.settings.stages import Control, MergeSettings


@dataclass(frozen=True)
class Candidate:
    """What decides which entries are compared."""

    method: str
    settings: MethodSettings
    tiles: int
    merged: MergeSettings

    @property
    def is_control(self) -> bool:
        """Whether its images are random real ones, or those that a method starts from."""
        start_only = getattr(self.settings, "start_only", False)
        return start_only or isinstance(self.settings, RandomSettings)

    @property
    def learns_labels(self) -> bool:
        """Whether the method makes labels of its own, in all of its rounds or in the last ones."""
        return self.merged.labels == "own" or self.settings.needed_loss is not None

    def fits(self, other: "Candidate") -> bool:
        """Whether sets of both have labels of the same source, stored in the same form."""
        if self.learns_labels and self.method != other.method:
            return False
        return self._form == other._form

    @property
    def _form(self) -> tuple[Any, ...]:
        merged = self.merged.model_dump(include={"labels", "label_epoch", "product"})
        return merged, self.settings.label_pool, self.tiles


def control_of(name: str, entries: Mapping[str, Candidate]) -> Control | None:
    """The control of the entry `name` among `entries`; None where there is none, as for controls.

    The one whose recipe differs in the fewest keys; of equal ones what the method itself starts
    from, then random images.
    """
    own = entries[name]
    if own.is_control:
        return None

    def distance(other: str) -> tuple[int, bool, bool]:
        one = entries[other]
        is_random = isinstance(one.settings, RandomSettings)
        return len(_differing(own, one)), one.method != own.method, not is_random

    fitting = [one for one, other in entries.items() if other.is_control and own.fits(other)]
    if not fitting:
        return None
    best = min(fitting, key=distance)
    return Control(entry=best, recipe=_differing(own, entries[best]))


def _differing(one: Candidate, other: Candidate) -> list[str]:
    """The keys in which the recipes differ, but for the epochs: networks that are measured have
    equal ones.
    """
    own, theirs = (it.merged.recipe.model_dump(exclude={"epochs"}) for it in (one, other))
    return [key for key, value in own.items() if value != theirs[key]]
