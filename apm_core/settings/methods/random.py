"""Settings of real images: what all selections of them have, and random ones."""

from typing import Any, ClassVar, Literal

from apm_core.settings.method import LabelledByPool, LabelsOf, MethodSettings
from apm_core.settings.section import setting


class RealImagesSettings(LabelledByPool, MethodSettings):
    """What every selection of real images has."""

    trains: ClassVar[bool] = False

    labels: Literal["teacher", "mean", "classes"] | None = setting(
        None, "final labels: one teacher's, the pool's mean, or classes; null: distill.labels"
    )

    @property
    def labels_of(self) -> LabelsOf:
        """The source of the merged set's labels: the class indices, or the teachers."""
        return "classes" if self.labels == "classes" else "pool"


class RandomSettings(RealImagesSettings):
    """Random real images: what every method has to beat."""

    implementation: ClassVar[str] = "selection.random_real:RandomReal"


HARD: dict[str, Any] = {  # what an entry with class labels says
    "labels": "classes",
    "recipe": {"loss": "ce", "lr": 0.01, "drop_momentum": True},
}
METHODS = {"random": RandomSettings()}
ENTRIES = {"random_hard": {"method": "random", **HARD}}
