"""The settings of each job, derived from the settings of the run.

Editing the library reruns nothing by itself: raise the stage's number in ALGORITHM together with a
change of its results.
"""

from pathlib import Path
from typing import Any

from apm_core.errors import ConfigError
from apm_core.settings.controls import Candidate, control_of
from apm_core.settings.dataset import Images
from apm_core.settings.evaluation import OnlineTraining, Protocol, RankedNetworks
from apm_core.settings.method import methods
from apm_core.settings.run import Entry, RunSettings
from apm_core.settings.section import Section
from apm_core.settings.stages import (
    AgreementSettings,
    CeilingSettings,
    CollectSettings,
    ContinualSettings,
    Control,
    Demands,
    DistillSettings,
    EvaluateSettings,
    MergeSettings,
    PoolSettings,
    PrepareSettings,
    RankingSettings,
)
from apm_core.settings.training import (
    Network,
    OrderedTraining,
    Pool,
    PoolName,
    PoolTraining,
    RecipeSettings,
)

ALGORITHM = {
    "prepare": 2,
    "teachers": 3,
    "distill": 6,
    "merge": 3,
    "evaluate": 4,
    "ceiling": 4,
    "nas_proxy": 3,
    "nas_short": 1,
    "nas_reference": 2,
    "nas": 4,
    "continual": 1,
    "collect": 3,
}
# a method's settings that do not affect its shards, or are separate fields of DistillSettings
EXCLUDED_OPTIONS = {
    "rounds",
    "start_only",
    "recipe",
    "network",
    "labels",
    "label_epoch",
    "tiles",
    "product",
}

# a ceiling keeps no snapshots, so what pools say about them must not rerun it
CEILING_DEFAULTS = {"per_job": 1, "snapshots": False, "snapshot_type": "float32"}


class Plan:
    """Derives the settings of every job of one run. Raises ConfigError for an unknown entry."""

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
        return range(self.settings.pools[pool].groups)

    @property
    def protocols(self) -> dict[str, list[Protocol]]:
        """The architectures of each entry's evaluation, with the protocols of each."""
        section = self.settings.evaluate
        networks: dict[Protocol, list[str]] = {
            "own": section.architectures,
            "hard": section.hard_labels,
            "plain": section.plain,
            "kd": section.kd.architectures,
        }
        found: dict[str, list[Protocol]] = {}
        for protocol, names in networks.items():
            for name in names:
                found.setdefault(name, []).append(protocol)
        return found

    def require_dataset(self, dataset: str) -> None:
        """Raise ConfigError unless the run is one on `dataset`."""
        name = self.settings.dataset.name
        if dataset != name:
            raise ConfigError(
                f"{dataset}: the config in use is for {name}: add --configfile with a preset of"
                f" {dataset}, or set dataset.name"
            )

    def require_target(self, dataset: str, ipc: str) -> None:
        """Raise ConfigError unless the settings produce results/{dataset}_ipc{ipc}.json."""
        name, number = self.settings.dataset.name, self.settings.ipc
        if (dataset, ipc) != (name, str(number)):
            raise ConfigError(
                f"results/{dataset}_ipc{ipc}.json: the config in use makes"
                f" results/{name}_ipc{number}.json: add --configfile with a preset of it, or set"
                " dataset.name and ipc"
            )

    @property
    def networks(self) -> list[Network]:
        """The architectures that the images must fit, but for those of a ranking."""
        trained = sorted(self.settings.evaluate.trained)
        own = [told.network for told in map(self.distill, self.entries) if told.network]
        return [self._network(self.settings.teachers.network), *map(self._evaluated, trained), *own]

    @property
    def demands(self) -> Demands:
        """What the run asks of the images."""
        ipc, teacher = self.settings.ipc, self.settings.teachers.network
        taken, tiles, embedding = [1], {}, {}
        for name, entry in self.entries.items():
            told = self.distill(name)
            if entry.settings.from_real:
                taken.append(ipc * told.tiles**2)
            own = entry.settings.tiles is not None
            tiles[f"{entry.place}.tiles" if own else "distill.tiles"] = told.tiles
            if entry.settings.embeds:
                embedding[entry.place] = told.network.network if told.network else teacher
        return Demands(max(taken), self.networks, tiles, embedding)

    def prepare(self) -> PrepareSettings:
        """The settings of the data stage."""
        dataset = self.settings.dataset
        images = _part(dataset, Images) | {"source": dataset.source or dataset.name}
        if dataset.whitening != "zca":
            del images["zca_eps"]
        return PrepareSettings(images=images, **self._common("prepare"))

    def pool(self, name: PoolName) -> PoolSettings:
        """The settings of a job that trains networks of pool `name`."""
        pool = self.settings.pools[name]
        kind = OrderedTraining if isinstance(pool, OrderedTraining) else PoolTraining
        return PoolSettings(
            training=_training(pool, kind),
            network=self._network(self.settings.teachers.network),
            **self._common("teachers", precision=True),
        )

    def pool_key(self, name: PoolName) -> str:
        """The key of a pool's settings in the paths of its files, equal for equal settings."""
        return self.pool(name).fingerprint[:10]

    def distill_pool(self, entry: str) -> PoolName | None:
        """The pool that `entry` distils from, or None."""
        return self.entry(entry).settings.pool

    def files(self, entry: str) -> list[str]:
        """The files that `entry` takes its images from."""
        return self.entry(entry).settings.files

    def label_pool(self, entry: str) -> PoolName | None:
        """The pool that labels the merged set of `entry`, or None."""
        return self.entry(entry).settings.label_pool

    def distill(self, entry: str) -> DistillSettings:
        """The settings of a shard of `entry`."""
        item = self.entry(entry)
        own, rounds = item.settings, self.settings.rounds_of(item)
        start = getattr(own, "start_keys", None) if rounds is None else None
        fields: dict[str, Any] = {}
        if own.trains:
            # a loss that labels of the method's own need is checked once more when it is built
            read = own.recipe_keys | ({"loss"} if own.needed_loss else set())
            keys = read if start is None else set()
            fields |= {
                "recipe": RecipeSettings(**self.settings.recipe_of(item).model_dump(include=keys)),
                "precision": self.settings.compute.precision,
            }
        if own.trains and own.pool is None:
            network = getattr(own, "network", None) or self.settings.teachers.network
            fields["network"] = self._network(network)
        return DistillSettings(
            method=item.method,
            options=own.model_dump(mode="json", include=start, exclude=EXCLUDED_OPTIONS),
            ipc=self.shard_ipc,
            tiles=own.tiles or self.settings.distill.tiles,
            rounds=rounds,
            **fields,
            **self._common("distill"),
        )

    def merge(self, entry: str) -> MergeSettings:
        """The settings of the merged set of `entry`."""
        item = self.entry(entry)
        own, common = item.settings, self.settings.distill
        fields: dict[str, Any] = {"labels": own.labels_of}
        if own.labels_of == "pool":
            fields["labels"] = own.labels or common.labels
            epoch = common.label_epoch if own.label_epoch is None else own.label_epoch
            fields["label_epoch"] = epoch
        return MergeSettings(
            entry=entry,
            recipe=self.settings.recipe_of(item),
            product=common.product.changed(own.product.model_dump(exclude_none=True)),
            **fields,
            **self._common("merge"),
        )

    def evaluate(self, network: str) -> EvaluateSettings:
        """The settings of the evaluation of one architecture; raises ConfigError when the run has
        none.
        """
        section, protocols = self.settings.evaluate, self.protocols.get(network)
        if not protocols:
            raise ConfigError(
                f"{network}: the config in use does not evaluate it: add it to"
                " evaluate.architectures"
            )
        numbers = {key: getattr(section, key) for key in ("epochs", "networks", "rates")}
        override = section.overrides.get(network)
        if override:
            numbers |= override.model_dump(exclude_none=True, exclude={"width"})
        if "kd" in protocols:
            numbers["kd"] = _part(section.kd, OnlineTraining)
        return EvaluateSettings(
            protocols=protocols,
            network=self._evaluated(network),
            **numbers,
            **self._common("evaluate", precision=True),
        )

    def ceiling(self, network: str) -> CeilingSettings:
        """The settings of the ceiling of one architecture, trained on the full data."""
        section = self.settings.evaluate.ceiling
        training = _training(self.settings.teachers, PoolTraining)
        training |= {"epochs": section.epochs} | CEILING_DEFAULTS
        return CeilingSettings(
            training=training,
            networks=section.networks,
            network=self._evaluated(network),
            **self._common("ceiling", precision=True),
        )

    def nas_proxy(self) -> RankingSettings:
        """The settings of the NAS ranking by a distilled set."""
        nas = self.settings.nas
        return self._ranking("nas_proxy", training=nas.proxy, seeds=nas.seeds)

    def nas_short(self) -> RankingSettings:
        """The settings of the NAS ranking by short trainings on the full data."""
        nas, augment = self.settings.nas, self.settings.teachers.augment
        return self._ranking("nas_short", training=nas.proxy, seeds=nas.seeds, augment=augment)

    def nas_reference(self) -> RankingSettings:
        """The settings of the NAS ranking by the full data."""
        nas, augment = self.settings.nas, self.settings.teachers.augment
        return self._ranking("nas_reference", training=nas.train, augment=augment)

    def _ranking(self, stage: str, **fields: Any) -> RankingSettings:  # noqa: ANN401
        ranked = _part(self.settings.nas, RankedNetworks)
        return RankingSettings(ranked=ranked, **fields, **self._common(stage, precision=True))

    def images_per_class(self, entry: str) -> int:
        """Images of a class in the set of `entry`, as networks see them: all tiles."""
        return self.settings.ipc * self.distill(entry).tiles ** 2

    def nas(self) -> AgreementSettings:
        """The settings of the comparison of the two rankings."""
        reference = self.settings.nas.reference
        column = reference.column if reference.source == "table" else None
        return AgreementSettings(source=reference.source, column=column, **self._common("nas"))

    def continual(self) -> ContinualSettings:
        """The settings of the networks trained on a set as the memory of classes."""
        section = self.settings.continual
        return ContinualSettings(
            **section.model_dump(exclude={"network"}),
            network=self._evaluated(section.network),
            **self._common("continual", precision=True),
        )

    def collect(self) -> CollectSettings:
        """The settings of a results file, with a record of all settings but paths, compute, and
        those of methods that the run does not use.
        """
        unused = set(methods()) - {item.method for item in self.entries.values()}
        left_out = {"compute": True, "methods": unused}
        record = self.settings.model_dump(mode="json", exclude=left_out)
        del record["dataset"]["data_dir"]
        table = record["nas"]["reference"]["table"]
        record["nas"]["reference"]["table"] = table and Path(table).name
        named = [one for one in record["distill"]["methods"] if isinstance(one, dict)]
        for section in [*record["methods"].values(), *named]:
            if "file" in section:
                section["file"] = Path(section["file"]).name
        record["precision"] = self.settings.compute.precision
        return CollectSettings(
            ipc=self.settings.ipc,
            controls=self._controls(),
            record=record,
            **self._common("collect"),
        )

    def _controls(self) -> dict[str, Control]:
        candidates = {
            name: Candidate(item.method, item.settings, self.distill(name).tiles, self.merge(name))
            for name, item in self.entries.items()
        }
        found = {name: control_of(name, candidates) for name in candidates}
        return {name: control for name, control in found.items() if control}

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


def _training(pool: Pool, kind: type[PoolTraining]) -> dict[str, Any]:
    """How a pool is trained, without what its other settings leave without effect."""
    told = _part(pool, kind)
    if not pool.rho:
        del told["alpha"]
    if not pool.snapshots:
        del told["snapshot_type"]
    return told


def _part(section: Section, kind: type[Section]) -> dict[str, Any]:
    """The fields of `section` that `kind` has."""
    return section.model_dump(include=set(kind.model_fields))
