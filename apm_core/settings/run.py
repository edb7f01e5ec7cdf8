"""All settings of a run, read from its config."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from apm_core.errors import ConfigError
from apm_core.settings.compute import ComputeSettings
from apm_core.settings.dataset import Dataset
from apm_core.settings.evaluation import Continual, Evaluation, Nas
from apm_core.settings.method import (
    Conditions,
    IterativeSettings,
    MethodSettings,
    methods,
    ready_entries,
)
from apm_core.settings.names import names_in
from apm_core.settings.product import Product
from apm_core.settings.schema import check, hint
from apm_core.settings.section import Count, Index, Section, laid_over, setting
from apm_core.settings.training import POOLS, OrderedPool, Pool, RecipeSettings, Teachers, misfit

ENTRY_NAME = r"[a-z][a-z0-9_]*"
RESERVED = ("whitening",)  # results/{dataset}.whitening.zarr.zip is no set
LEAST_RANKED = 3  # networks


class NamedEntry(Section):
    """An entry with a name of its own; what else it says differs from its method's settings."""

    model_config = Section.model_config | {"extra": "allow"}

    name: Annotated[str, Field(pattern=f"^{ENTRY_NAME}$")] = Field(
        description="names the files and columns"
    )
    method: str | None = setting(
        None, "a method, or an earlier entry, whose settings it has; null: that of its name"
    )

    @property
    def stated(self) -> dict[str, Any]:
        """The keys that the config sets, without `method: null`; other nulls are values."""
        fields = self.model_dump(exclude_unset=True)
        return {k: v for k, v in fields.items() if k != "method" or v is not None}


class Distill(Section):
    """What is distilled."""

    methods: Annotated[list[str | NamedEntry], Field(min_length=1)] = setting(
        ["apm", "random"],
        "entries to compare: a method's name, or {name: ..., method: ...} with what differs",
    )
    tiles: Count = setting(
        1,
        "t: a stored image holds t x t images of 1/t of its side, which are decoded by bilinear"
        " upsampling; divides the resolution",
    )
    shards: Count = setting(1, "independent jobs that share each class's images; divides ipc")
    rounds: Index = setting(2500, "R: rounds 0 to R are run")
    labels: Literal["teacher", "mean"] = setting(
        "teacher", "final labels: logits of one teacher, or of the pool's mean"
    )
    label_epoch: Index | None = setting(
        None, "labels by teachers as after so many epochs (needs snapshots); null: at their end"
    )
    product: Product = Product()


Methods: type[Section] = create_model(
    "Methods",
    __base__=Section,
    __doc__="Settings of each method.",
    **{name: (type(default), default) for name, default in methods().items()},
)


@dataclass(frozen=True)
class Entry:
    """One distilled set of a run: a method with its settings, under a name.

    `place` is the section of the config that sets it.
    """

    name: str
    place: str
    method: str
    settings: MethodSettings


class RunSettings(Section):
    """Every setting of a run."""

    seed: Index = setting(0, "all random streams derive from it")
    ipc: Count = setting(50, "images per class of the distilled set, at most the smallest class")
    dataset: Dataset = Dataset()
    compute: ComputeSettings = ComputeSettings()
    teachers: Teachers = POOLS["teachers"]
    aligned_teachers: Pool = POOLS["aligned_teachers"]
    experts: Pool = POOLS["experts"]
    flat_experts: Pool = POOLS["flat_experts"]
    ordered_experts: OrderedPool = POOLS["ordered_experts"]
    recipe: RecipeSettings = RecipeSettings()
    distill: Distill = Distill()
    methods: Methods = Methods()
    evaluate: Evaluation = Evaluation()
    nas: Nas = Nas()
    continual: Continual = Continual()

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "RunSettings":
        """The settings that a config states, the others at their defaults.

        Raises ConfigError, one line that names the key, for the first thing that is wrong.
        """
        settings = cls().changed(check(config, cls))
        settings.require_sense()
        return settings

    @property
    def pools(self) -> dict[str, Pool]:
        """The pools of networks by name."""
        return {name: getattr(self, name) for name in POOLS}

    @property
    def entries(self) -> dict[str, Entry]:
        """The entries by name, in the order of the results; raises ConfigError for a wrong one."""
        entries: dict[str, Entry] = {}
        for number, item in enumerate(self.distill.methods):
            place = f"distill.methods.{number}"
            stated = {"name": item} if isinstance(item, str) else item.stated
            name = stated["name"]
            if name in RESERVED:
                raise ConfigError(
                    f"config: {place}.name: {name!r} is the name of another file: choose another"
                )
            if name in entries:
                raise ConfigError(f"config: {place}: a second entry has the name {name!r}")
            entries[name] = self._entry(stated, entries, place)
        return entries

    def _entry(self, stated: dict[str, Any], earlier: Mapping[str, Entry], place: str) -> Entry:
        changes = dict(stated)
        name = changes.pop("name")
        base = changes.pop("method", name)
        while base in ready_entries() and base not in earlier:
            changes = laid_over(ready_entries()[base], changes)
            base = changes.pop("method")
        if base in earlier:
            method, settings = earlier[base].method, earlier[base].settings
        elif base in methods():
            method, settings = base, getattr(self.methods, base)
        else:
            names = list(dict.fromkeys([*methods(), *ready_entries(), *earlier]))
            raise ConfigError(f"config: {place}: there is no method {base!r}; {hint(base, names)}")
        changes = check(changes, type(settings), place)
        if stated.keys() == {"name"}:
            place = f"methods.{method}"
        return Entry(name, place, method, settings.changed(changes))

    def require_sense(self) -> None:
        """Raise ConfigError when two settings contradict each other."""
        if self.dataset.source is None and self.dataset.name not in names_in("data.sources"):
            raise ConfigError(
                f"config: dataset.source: null means dataset.name, and {self.dataset.name!r} is"
                f" none of {', '.join(names_in('data.sources'))}: set dataset.source"
            )
        for entry in self.entries.values():
            self._require_epochs(entry)
            self._require_images(entry)
            self._require_loss(entry)
            self._require_consistency(entry)
        if self.ipc % self.distill.shards:
            raise ConfigError(
                f"config: distill.shards: {self.distill.shards} does not divide ipc: {self.ipc}"
            )
        for name, pool in self.pools.items():
            if pool.n % pool.per_job:
                raise ConfigError(
                    f"config: {name}.n: {pool.n} is not a multiple of {name}.per_job:"
                    f" {pool.per_job}"
                )
        self._require_effect()
        self._require_rates()
        if 0 < self.nas.networks < LEAST_RANKED:
            raise ConfigError(
                f"config: nas.networks: {self.nas.networks} cannot be ranked: 0 for no ranking,"
                f" else at least {LEAST_RANKED}"
            )
        if self.nas.networks and self.nas.reference.source == "table":
            for key in ("table", "column"):
                if not getattr(self.nas.reference, key):
                    raise ConfigError(f"config: nas.reference.{key}: needed with source: table")

    def recipe_of(self, entry: Entry) -> RecipeSettings:
        """How networks are trained on the set of `entry`."""
        return self.recipe.changed(entry.settings.recipe.model_dump(exclude_none=True))

    def rounds_of(self, entry: Entry) -> int | None:
        """R of `entry`, or None where none are run."""
        own = entry.settings
        if not isinstance(own, IterativeSettings) or own.start_only:
            return None
        return self.distill.rounds if own.rounds is None else own.rounds

    def _require_loss(self, entry: Entry) -> None:
        """Raise ConfigError when the loss of `entry` does not go with its labels."""
        loss, labels = self.recipe_of(entry).loss, entry.settings.labels_of
        found = None if labels == "own" else misfit(loss, classes=labels == "classes")
        if found:
            kind, wanted = found
            raise ConfigError(
                f"config: {entry.place}.recipe.loss: {loss} does not go with labels that are"
                f" {kind}: set it to {wanted}"
            )

    def _require_consistency(self, entry: Entry) -> None:
        """Raise ConfigError when settings of `entry` contradict its recipe, rounds or others."""
        recipe = self.recipe_of(entry)
        conditions = Conditions(recipe.loss, recipe.epochs, self.rounds_of(entry))
        if found := entry.settings.contradiction(conditions):
            key, reason = found
            raise ConfigError(f"config: {entry.place}.{key}: {reason}")

    def _require_effect(self) -> None:
        """Raise ConfigError for an override of what nothing in the run is trained with."""
        section = self.evaluate
        for network, override in section.overridden.items():
            place = f"config: evaluate.overrides.{network}"
            if network not in section.trained | {self.continual.network}:
                raise ConfigError(
                    f"{place}: it is not evaluated: add it to evaluate.architectures, or set it to"
                    " null"
                )
            if network in section.trained_by_recipe:
                continue
            effective = {"width", "networks"} if network in section.kd.architectures else {"width"}
            stated = override.model_dump(exclude_none=True)
            if idle := sorted(stated.keys() - effective):
                raise ConfigError(
                    f"{place}.{idle[0]}: no {network} is trained by the recipe of a set: add it to"
                    " evaluate.architectures, or leave the key out"
                )

    def _require_rates(self) -> None:
        """Raise ConfigError where an override's optimizer would get the rate of another, or its
        rate reach sets with several optimizers.
        """
        optimizers = {name: self.recipe_of(entry).optimizer for name, entry in self.entries.items()}
        for network, override in self.evaluate.overridden.items():
            place, own = f"evaluate.overrides.{network}", override.optimizer
            other = next((name for name, one in optimizers.items() if one != own), None)
            if own and other and override.lr is None:
                raise ConfigError(
                    f"config: {place}.optimizer: {own} needs a learning rate of its own, that of"
                    f" {other} is for {optimizers[other]}: set {place}.lr"
                )
            if override.lr and not own and len(set(optimizers.values())) > 1:
                raise ConfigError(
                    f"config: {place}.lr: one rate does not suit the optimizers of all sets"
                    f" ({', '.join(sorted(set(optimizers.values())))}): set {place}.optimizer too"
                )

    def _require_epochs(self, entry: Entry) -> None:
        """Raise ConfigError when `entry` needs epochs that its pools do not keep or reach."""
        own, place = entry.settings, entry.place
        needed = [(f"{place}.{key}", own.pool, last) for key, last in own.epochs_needed.items()]
        if own.label_pool:
            key, last = f"{place}.label_epoch", own.label_epoch
            if last is None:
                key, last = "distill.label_epoch", self.distill.label_epoch
            if last is not None:
                needed.append((key, own.label_pool, last))
        for key, name, last in needed:
            pool = self.pools[name]
            needs = f"config: {key}: it needs networks as after epoch {last}"
            if last > pool.epochs:
                raise ConfigError(
                    f"{needs}, beyond {name}.epochs: {pool.epochs}: lower the one or raise the"
                    " other"
                )
            if not pool.snapshots:
                raise ConfigError(f"{needs}: set {name}.snapshots: true")

    def _require_images(self, entry: Entry) -> None:
        """Raise ConfigError when `entry` shall have more images of a class than it can make."""
        tiles = entry.settings.tiles or self.distill.tiles
        needed = self.ipc * tiles**2
        for key, most in entry.settings.most_images.items():
            if most < needed:
                of = f" x {tiles} x {tiles} tiles" if tiles > 1 else ""
                raise ConfigError(
                    f"config: {entry.place}.{key}: {most} are fewer than the {needed} images"
                    f" of a class (ipc: {self.ipc}{of}): raise it, or lower ipc or tiles"
                )
