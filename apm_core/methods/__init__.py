"""The methods, by name. This module imports none of them: the workflow reads it to plan, without
loading torch.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from apm_core.errors import ConfigError

if TYPE_CHECKING:
    from apm_core.methods.base import Method

Needs = Literal["teachers", "aligned_teachers", "experts", "flat_experts"]  # pools of networks


@dataclass(frozen=True)
class Entry:
    """Where a method lives and what the earlier stages must provide."""

    module: str
    name: str  # of the class
    needs: Needs | None  # for distillation
    # "pool": teachers label the merged set; "classes": class indices; "own": the shard brings them
    labels: Literal["pool", "classes", "own"]
    iterative: bool = True  # uses the number of rounds
    control_of: str | None = None  # the method whose settings it has, but no rounds

    @property
    def labelled_by(self) -> Needs | None:
        """The pool that labels the merged set."""
        return (self.needs or "teachers") if self.labels == "pool" else None


METHODS = {
    "apm": Entry("apm_core.methods.apm.apm", "APM", needs="teachers", labels="pool"),
    "apm_plus": Entry("apm_core.methods.apm.apm", "APM", needs="aligned_teachers", labels="pool"),
    "dm": Entry("apm_core.methods.dm", "DM", needs=None, labels="classes"),
    "dc": Entry("apm_core.methods.dc", "DC", needs=None, labels="classes"),
    "dsa": Entry("apm_core.methods.dc", "DC", needs=None, labels="classes"),
    "mtt": Entry("apm_core.methods.matching.mtt", "MTT", needs="experts", labels="own"),
    "tesla": Entry("apm_core.methods.matching.mtt", "MTT", needs="experts", labels="own"),
    "ftd": Entry("apm_core.methods.matching.ftd", "FTD", needs="flat_experts", labels="own"),
    "datm": Entry("apm_core.methods.matching.datm", "DATM", needs="flat_experts", labels="own"),
    "frepo": Entry("apm_core.methods.kernel.frepo", "FRePo", needs=None, labels="own"),
    "rcig": Entry("apm_core.methods.kernel.rcig", "RCIG", needs=None, labels="own"),
    "bptt": Entry("apm_core.methods.bptt", "BPTT", needs=None, labels="own"),
    "random": Entry(
        "apm_core.methods.selection.random_real",
        "RandomReal",
        needs=None,
        labels="pool",
        iterative=False,
    ),
    "random_plus": Entry(
        "apm_core.methods.apm.apm",
        "APM",
        needs="aligned_teachers",
        labels="pool",
        iterative=False,
        control_of="apm_plus",
    ),
    "random_hard": Entry(
        "apm_core.methods.selection.random_real",
        "RandomReal",
        needs=None,
        labels="classes",
        iterative=False,
    ),
}


def entry(name: str) -> Entry:
    """The entry of method `name`; raises ConfigError for an unknown name."""
    if name not in METHODS:
        raise ConfigError(
            f"distill.methods: there is no method {name!r}; known: {', '.join(METHODS)}"
        )
    return METHODS[name]


def build(name: str, settings: dict[str, Any]) -> "Method":
    """The method `name` with its `settings`: its options, and the recipe where it trains on the
    distilled images.
    """
    found = entry(name)
    method = getattr(import_module(found.module), found.name)
    if "recipe" not in settings:
        return method(name=name, **settings["options"])
    from apm_core.training.recipe import Recipe

    return method(name=name, recipe=Recipe.of(settings["recipe"]), **settings["options"])
