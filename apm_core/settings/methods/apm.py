"""Settings of adversarial prediction matching: as published (`apm`), and improved (`apm_plus`)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from apm_core.settings.method import (
    LEARNED,
    Conditions,
    Contradiction,
    IterativeSettings,
    LabelledByPool,
)
from apm_core.settings.methods.bptt import Unrolling
from apm_core.settings.section import Above, AtLeast, BelowOne, Count, Index, setting
from apm_core.settings.training import PoolName


class APMSettings(LabelledByPool, IterativeSettings):
    """Adversarial prediction matching (Chen et al. 2023)."""

    implementation: ClassVar[str] = "apm.apm:APM"
    pool: ClassVar[PoolName | None] = "teachers"
    recipe_keys: ClassVar[frozenset[str]] = IterativeSettings.recipe_keys - {"loss"}
    start_keys: ClassVar[frozenset[str] | None] = frozenset()

    lr_images: Above = setting(1.0, "step of the images, x0.3 from half of the rounds on")
    momentum_images: BelowOne = setting(0.5, "of the image steps")
    checkpoints: Count = setting(
        5, "K: students kept after epochs E/K, 2E/K, ..., E; divides recipe.epochs"
    )
    period: Count = setting(3, "rounds that share a teacher and a student (mid_gap + 1)")
    batch: Count | None = setting(None, "images per round; null: all of the shard")
    ce: AtLeast = setting(0.1, "weight of the teacher's cross-entropy on the images")
    logarithm: bool = setting(
        False, "true: -log of each image's distance (Eq. 4); false: as the published code"
    )
    keep_batch: bool = setting(
        True, "true: the same images for a whole period; false: as the published code"
    )

    def contradiction(self, conditions: Conditions) -> Contradiction | None:
        """Also checkpoints that do not divide the epochs of students, where there are some."""
        found, epochs = super().contradiction(conditions), conditions.epochs
        if found or self.start_only or not epochs % self.checkpoints:
            return found
        return "checkpoints", f"{self.checkpoints} does not divide recipe.epochs: {epochs}"


class UnrolledRounds(Unrolling):
    """The last rounds of `apm_plus`, which follow the gradient through a training (`bptt`)."""

    rounds: Index = setting(0, "of all rounds; they need recipe.loss soft_ce")


class APMPlusSettings(APMSettings):
    """Adversarial prediction matching with what proved useful."""

    implementation: ClassVar[str] = "apm.plus:APMPlus"
    pool: ClassVar[PoolName | None] = "aligned_teachers"
    start_keys: ClassVar[frozenset[str] | None] = frozenset({"start", "teacher_epochs"})

    ce: AtLeast = setting(1.0, "weight of the teacher's cross-entropy on the images")
    augment_images: bool = setting(True, "DSA in the image update too")
    start: Literal["real", "correct"] = setting(
        "correct", "real images, or such that the teachers classify correctly"
    )
    teacher_epochs: Annotated[list[Index], Field(min_length=2, max_length=2)] | None = setting(
        [2, 4], "first and last epoch after which teachers are taken; null: their end"
    )
    labels: Literal["teacher", "mean"] | None = setting(
        "mean", "final labels: one teacher's, or the pool's mean; null: distill.labels"
    )
    label_epoch: Index | None = setting(
        4, "labels by teachers as after so many epochs; null: distill.label_epoch"
    )
    unrolled: UnrolledRounds = UnrolledRounds()

    @property
    def needed_loss(self) -> tuple[str, str] | None:
        """That of the labels that unrolled rounds learn."""
        return LEARNED if self.unrolled.rounds else None

    def contradiction(self, conditions: Conditions) -> Contradiction | None:
        """Also teachers' epochs in the wrong order, and too many unrolled rounds."""
        own, rounds = self.unrolled.rounds, conditions.rounds
        first, last = self.teacher_epochs or (0, 0)
        if first > last:
            return "teacher_epochs", f"{first} is after {last}: swap them"
        if own and rounds is not None and own > rounds:
            reason = f"{own} leaves no round to match: lower it, or raise rounds: {rounds}"
            return "unrolled.rounds", reason
        return super().contradiction(conditions)

    @property
    def epochs_needed(self) -> dict[str, int]:
        """The last epoch of the teachers of the images."""
        return {"teacher_epochs": max(self.teacher_epochs)} if self.teacher_epochs else {}


METHODS = {"apm": APMSettings(), "apm_plus": APMPlusSettings()}
ENTRIES = {"random_plus": {"method": "apm_plus", "start_only": True}}
