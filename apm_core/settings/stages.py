"""The settings of each stage: everything that the result of a job depends on.

Their canonical text is the job's only parameter, so a job runs again exactly when one of them has
changed. `apm_core/settings/plan.py` derives them from the settings of a run.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from apm_core.settings.compute import Precision
from apm_core.settings.dataset import Images
from apm_core.settings.evaluation import (
    OfLogits,
    OnlineTraining,
    Protocol,
    RankedNetworks,
    RankingTraining,
)
from apm_core.settings.method import MethodSettings, methods
from apm_core.settings.product import Product
from apm_core.settings.section import Section
from apm_core.settings.text import canonical, fingerprint
from apm_core.settings.training import Network, OrderedTraining, PoolTraining, RecipeSettings


class StageSettings(Section):
    """The settings that every stage has."""

    seed: int = 0
    algorithm: int = 1  # raised when the code of the stage changes its results

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return self.model_dump(mode="json")

    @property
    def text(self) -> str:
        """Canonical JSON: equal for equal settings."""
        return canonical(self.to_dict())

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that name these settings."""
        return fingerprint(self.to_dict())

    @classmethod
    def read(cls, text: str) -> Self:
        """The settings whose `text` this is; raises ValueError for any other text."""
        return cls.model_validate(json.loads(text))


class PrepareSettings(StageSettings):
    """Settings of the data stage."""

    images: Images  # source is never None

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values, without permissions that are not given."""
        permissions = ("skip_unreadable", "oversample")
        refused = {name for name in permissions if not getattr(self.images, name)}
        return self.model_dump(mode="json", exclude={"images": refused})


@dataclass(frozen=True)
class Demands:
    """What later stages ask of the images.

    Attributes:
        images_per_class: as many as any entry takes.
        networks: the architectures that have to read them.
        tiles: along a side of a stored image, by the key that says so.
        embedding: architectures that have to offer an embedding, by the section of their reader.
    """

    images_per_class: int = 1
    networks: Sequence[Network] = ()
    tiles: Mapping[str, int] = field(default_factory=dict)
    embedding: Mapping[str, str] = field(default_factory=dict)


class PoolSettings(StageSettings):
    """Settings of a job that trains networks of a pool, whose size does not affect the job."""

    training: PoolTraining | OrderedTraining
    network: Network
    precision: Precision = "auto"


class DistillSettings(StageSettings):
    """Settings of a shard, equal for all shards of an entry."""

    method: str
    options: dict[str, Any]  # settings of the method that its shards depend on; else its defaults
    ipc: int  # stored images per class of the shard
    tiles: int = 1  # along a side of a stored image
    rounds: int | None = None  # R: rounds 0 to R; None: no rounds
    # None where no network runs; else at its defaults, but for the keys that the method reads
    recipe: RecipeSettings | None = None
    network: Network | None = None  # None: no network runs, or those of a pool
    precision: Precision | None = None  # None: no network runs

    @property
    def own(self) -> MethodSettings:
        """The settings of the method."""
        return methods()[self.method].changed(self.options)


class MergeSettings(StageSettings):
    """Settings of a merged set: its entry, its labels and the recipe stored with it."""

    entry: str
    labels: Literal["teacher", "mean", "classes", "own"]
    label_epoch: int | None = None
    recipe: RecipeSettings
    product: Product = Product()


class EvaluateSettings(StageSettings):
    """Settings of the evaluation of one architecture, under each of its protocols."""

    protocols: list[Protocol]
    epochs: int
    networks: int
    lr: float | None = None  # None: that of the set
    rates: list[float]
    network: Network
    precision: Precision = "auto"
    kd: OnlineTraining | None = None  # of protocol "kd"; None: without it
    batch: int | None = None  # None: that of the set, as for the next ones
    optimizer: str | None = None
    schedule: str | None = None
    loss: OfLogits | None = None  # in place of another of these

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values, without what they have no use for."""
        optional = ("kd", "batch", "optimizer", "schedule", "loss")
        return self.model_dump(
            mode="json", exclude={key for key in optional if getattr(self, key) is None}
        )


class CeilingSettings(StageSettings):
    """Settings of the ceiling of one architecture, trained on the full data."""

    training: PoolTraining
    networks: int
    network: Network
    precision: Precision = "auto"


class RankingSettings(StageSettings):
    """Settings of a NAS-Bench-201 ranking, by a distilled set or by the full data."""

    ranked: RankedNetworks
    training: RankingTraining
    seeds: int = 1
    augment: str | None = None  # None: the set's
    precision: Precision = "auto"


class AgreementSettings(StageSettings):
    """Settings of the comparison of two rankings."""

    source: Literal["train", "table"]
    column: str | None = None


class Control(Section):
    """The entry that another is compared with."""

    entry: str
    recipe: list[str]  # keys in which the recipes of the two differ


class ContinualSettings(StageSettings):
    """Settings of the networks trained on a set as the memory of classes that come in steps."""

    steps: int
    orders: int
    network: Network
    epochs: int
    rates: list[float]
    precision: Precision = "auto"


class CollectSettings(StageSettings):
    """Settings of the results file."""

    ipc: int
    controls: dict[str, Control]  # by entry, of those that have one
    record: dict[str, Any]  # all settings of the run, without paths
