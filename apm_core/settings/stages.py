"""What the result of each job depends on: the settings that a stage is told.

Their canonical text is the job's only parameter, so a job runs again exactly when one of them has
changed. `workflow/plan.py` cuts them out of the settings of a run.
"""

import json
from typing import Any, Literal, Self

from apm_core.settings.compute import Precision
from apm_core.settings.dataset import Images
from apm_core.settings.evaluation import Protocol, RankedNetworks, RankingTraining
from apm_core.settings.method import MethodSettings, methods
from apm_core.settings.section import Section
from apm_core.settings.text import canonical, fingerprint
from apm_core.settings.training import Network, PoolTraining, RecipeSettings


class StageSettings(Section):
    """What every stage is told."""

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
        """The settings that `text` gave."""
        return cls.model_validate(json.loads(text))


class PrepareSettings(StageSettings):
    """The data stage."""

    images: Images  # source is never None


class PoolSettings(StageSettings):
    """A job that trains networks of a pool; how many there are in all does not matter to one."""

    training: PoolTraining
    network: Network
    precision: Precision = "auto"


class DistillSettings(StageSettings):
    """A shard; neither its number nor how many there are matter."""

    method: str
    options: dict[str, Any]  # of the method, those that distillation depends on
    ipc: int  # images per class of the shard
    rounds: int | None = None  # R: rounds 0 to R; None: no rounds
    recipe: RecipeSettings | None = None  # the last three are None where no network runs
    network: Network | None = None
    precision: Precision | None = None

    @property
    def own(self) -> MethodSettings:
        """The settings of the method."""
        return methods()[self.method].changed(self.options)


class MergeSettings(StageSettings):
    """The distilled set: its name, its labels, and the recipe that it is published with."""

    entry: str
    labels: Literal["teacher", "mean", "classes", "own"]
    label_epoch: int | None = None
    recipe: RecipeSettings


class EvaluateSettings(StageSettings):
    """The networks of one architecture under one protocol."""

    protocol: Protocol
    epochs: int
    networks: int
    lr: float | None = None  # None: that of the set
    rates: list[float]
    network: Network
    precision: Precision = "auto"


class CeilingSettings(StageSettings):
    """The networks trained on the full data."""

    training: PoolTraining
    networks: int
    network: Network
    precision: Precision = "auto"


class RankingSettings(StageSettings):
    """NAS-Bench-201 networks, trained on a distilled set or on the full data."""

    ranked: RankedNetworks
    training: RankingTraining
    seeds: int = 1
    augment: str | None = None  # None: the set's
    precision: Precision = "auto"


class AgreementSettings(StageSettings):
    """The comparison of two rankings."""

    source: Literal["train", "table"]
    column: str | None = None


class CollectSettings(StageSettings):
    """The results file."""

    ipc: int
    record: dict[str, Any]  # all settings of the run, without paths
