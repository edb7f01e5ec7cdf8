"""What each job of a run depends on: the settings of the run, cut into those of the stages.

Editing the library reruns nothing by itself: raise the stage's number in ALGORITHM together with a
change of its results.
"""

from pathlib import Path
from typing import Any

from apm_core.errors import ConfigError
from apm_core.settings.dataset import Images
from apm_core.settings.evaluation import RankedNetworks
from apm_core.settings.method import IterativeSettings
from apm_core.settings.run import Entry, RunSettings
from apm_core.settings.section import Section
from apm_core.settings.stages import (
    AgreementSettings,
    CeilingSettings,
    CollectSettings,
    DistillSettings,
    EvaluateSettings,
    MergeSettings,
    PoolSettings,
    PrepareSettings,
    RankingSettings,
)
from apm_core.settings.training import Network, PoolName, PoolTraining, RecipeSettings

ALGORITHM = {
    "prepare": 2,
    "teachers": 1,
    "distill": 4,
    "merge": 2,
    "evaluate": 2,
    "ceiling": 2,
    "nas_proxy": 1,
    "nas_reference": 1,
    "nas": 1,
    "collect": 2,
}
# of a method's settings: not what distillation depends on, or told to it in another form
TOLD_OTHERWISE = {"rounds", "start_only", "recipe", "network", "labels", "label_epoch"}

KEPT_BY_POOLS = {"per_job": 1, "snapshots": False, "snapshot_type": "float32"}  # not by ceilings


class Plan:
    """The stages of one run. Every method returns the settings of one job."""

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self.entries = settings.entries

    def entry(self, name: str) -> Entry:
        """The entry `name`; raises ConfigError when the run has none."""
        if name not in self.entries:
            raise ConfigError(
                f"{name}: the config in use has no such entry: add it to distill.methods"
            )
        return self.entries[name]

    @property
    def shard_ipc(self) -> int:
        """Images per class of one shard."""
        return self.settings.ipc // self.settings.distill.shards

    def groups(self, pool: PoolName) -> range:
        """Numbers of the jobs that train a pool."""
        section = self.settings.pools[pool]
        return range(section.n // section.per_job)

    @property
    def protocols(self) -> list[tuple[str, str]]:
        """Pairs (architecture, protocol) of each entry's evaluation."""
        evaluate = self.settings.evaluate
        own = [(name, "own") for name in evaluate.architectures]
        hard = [(name, "hard") for name in evaluate.hard_labels]
        return own + hard + [(name, "plain") for name in evaluate.plain]

    def require_target(self, dataset: str, ipc: str) -> None:
        """Raise ConfigError when results are asked for that these settings do not describe."""
        name, number = self.settings.dataset.name, self.settings.ipc
        if (dataset, ipc) != (name, str(number)):
            raise ConfigError(
                f"results/{dataset}_ipc{ipc}.json: the config in use makes"
                f" results/{name}_ipc{number}.json: add --configfile"
                f" presets/{dataset}_ipc{ipc}.yaml, or set dataset.name and ipc"
            )

    @property
    def networks(self) -> list[Network]:
        """The architectures that will read the images."""
        names = self.settings.evaluate.architectures
        return [self._network(self.settings.teachers.network), *map(self._evaluated, names)]

    def prepare(self) -> PrepareSettings:
        """The data stage."""
        dataset = self.settings.dataset
        images = _part(dataset, Images) | {"source": dataset.source or dataset.name}
        return PrepareSettings(images=images, **self._common("prepare"))

    def pool(self, name: PoolName) -> PoolSettings:
        """A job of a pool."""
        return PoolSettings(
            training=_part(self.settings.pools[name], PoolTraining),
            network=self._network(self.settings.teachers.network),
            **self._common("teachers", precision=True),
        )

    def pool_key(self, name: PoolName) -> str:
        """Names the settings of a pool in the paths of its files: runs that share them share it."""
        return self.pool(name).fingerprint[:10]

    def distill_pool(self, entry: str) -> PoolName | None:
        """The pool that an entry distils from."""
        return self.entry(entry).settings.pool

    def label_pool(self, entry: str) -> PoolName | None:
        """The pool that labels the merged set of an entry."""
        settings = self.entry(entry).settings
        return (settings.pool or "teachers") if settings.labels_of == "pool" else None

    def distill(self, entry: str) -> DistillSettings:
        """A shard of an entry."""
        found = self.entry(entry)
        own = found.settings
        told: dict[str, Any] = {"rounds": self._rounds(found)}
        if own.trains:
            told |= {"recipe": self._recipe(found), "precision": self.settings.compute.precision}
        if own.trains and own.pool is None:
            network = getattr(own, "network", None) or self.settings.teachers.network
            told["network"] = self._network(network)
        return DistillSettings(
            method=found.method,
            options=own.model_dump(mode="json", exclude=TOLD_OTHERWISE),
            ipc=self.shard_ipc,
            **told,
            **self._common("distill"),
        )

    def _rounds(self, entry: Entry) -> int | None:
        own = entry.settings
        if not isinstance(own, IterativeSettings) or own.start_only:
            return None
        return self.settings.distill.rounds if own.rounds is None else own.rounds

    def merge(self, entry: str) -> MergeSettings:
        """The distilled set of an entry."""
        found = self.entry(entry)
        own, common = found.settings, self.settings.distill
        told: dict[str, Any] = {"labels": own.labels_of}
        if own.labels_of == "pool":
            told["labels"] = own.labels or common.labels
            told["label_epoch"] = common.label_epoch if own.label_epoch is None else own.label_epoch
        return MergeSettings(
            entry=entry, recipe=self._recipe(found), **told, **self._common("merge")
        )

    def _recipe(self, entry: Entry) -> RecipeSettings:
        return self.settings.recipe.changed(entry.settings.recipe.model_dump(exclude_none=True))

    def evaluate(self, network: str, protocol: str) -> EvaluateSettings:
        """The networks of one architecture under one protocol."""
        section = self.settings.evaluate
        numbers = {key: getattr(section, key) for key in ("epochs", "networks", "rates")}
        override = section.overrides.get(network)
        if override:
            numbers |= override.model_dump(exclude_none=True, exclude={"width"})
        return EvaluateSettings(
            protocol=protocol,
            network=self._evaluated(network),
            **numbers,
            **self._common("evaluate", precision=True),
        )

    def ceiling(self, network: str) -> CeilingSettings:
        """The networks trained on the full data."""
        section = self.settings.evaluate.ceiling
        training = _part(self.settings.teachers, PoolTraining)
        training |= {"epochs": section.epochs} | KEPT_BY_POOLS
        return CeilingSettings(
            training=training,
            networks=section.networks,
            network=self._evaluated(network),
            **self._common("ceiling", precision=True),
        )

    def nas_proxy(self) -> RankingSettings:
        """NAS networks trained on a distilled set."""
        nas = self.settings.nas
        return RankingSettings(
            ranked=_part(nas, RankedNetworks),
            training=nas.proxy,
            seeds=nas.seeds,
            **self._common("nas_proxy", precision=True),
        )

    def nas_reference(self) -> RankingSettings:
        """The same networks trained on the full data."""
        nas = self.settings.nas
        return RankingSettings(
            ranked=_part(nas, RankedNetworks),
            training=nas.train,
            augment=self.settings.teachers.augment,
            **self._common("nas_reference", precision=True),
        )

    def nas(self) -> AgreementSettings:
        """The comparison of two rankings."""
        reference = self.settings.nas.reference
        column = reference.column if reference.source == "table" else None
        return AgreementSettings(source=reference.source, column=column, **self._common("nas"))

    def collect(self) -> CollectSettings:
        """The results file, with a record of all settings but paths and how to compute."""
        record = self.settings.model_dump(mode="json", exclude={"compute"})
        del record["dataset"]["data_dir"]
        table = record["nas"]["reference"]["table"]
        record["nas"]["reference"]["table"] = table and Path(table).name
        record["precision"] = self.settings.compute.precision
        return CollectSettings(ipc=self.settings.ipc, record=record, **self._common("collect"))

    def _network(self, name: str) -> Network:
        """An architecture; the width and depth of `teachers` are those of their own."""
        teachers = self.settings.teachers
        own = teachers if name == teachers.network else Network(network=name)
        return Network(network=name, width=own.width, depth=own.depth)

    def _evaluated(self, name: str) -> Network:
        override = self.settings.evaluate.overrides.get(name)
        width = override.width if override else None
        return self._network(name).changed({} if width is None else {"width": width})

    def _common(self, stage: str, *, precision: bool = False) -> dict[str, Any]:
        own = {"precision": self.settings.compute.precision} if precision else {}
        return {"seed": self.settings.seed, "algorithm": ALGORITHM[stage], **own}


def _part(section: Section, kind: type[Section]) -> dict[str, Any]:
    """The fields of `section` that `kind` has."""
    return section.model_dump(include=set(kind.model_fields))
