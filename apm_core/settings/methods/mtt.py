"""Settings of the methods that match an expert's trajectory: MTT, TESLA, FTD."""

from typing import ClassVar

from apm_core.settings.method import IterativeSettings
from apm_core.settings.section import Above, AtLeast, BelowOne, Count, setting
from apm_core.settings.training import PoolName, RecipeChanges


class TrajectorySettings(IterativeSettings):
    """What every method that matches trajectories has."""

    recipe_keys: ClassVar[frozenset[str]] = frozenset({"augment"})

    lr_images: Above = setting(1000.0, "step of the images; 100 to 1000 for CIFAR")
    momentum_images: BelowOne = setting(0.5, "of the images and of the learned rate")
    rate: Above = setting(0.01, "learning rate of the inner training at the start; it is learned")
    lr_rate: AtLeast = setting(1e-5, "step of the learned rate")
    steps: Count = setting(30, "N: inner steps")
    expert_epochs: Count = setting(2, "M: epochs of the expert that the steps have to reach")
    start_below: Count = setting(40, "T+: an expert's epochs to start from are below it")
    batch: Count | None = setting(None, "images of an inner step; null: all of the shard")
    exact: bool = setting(
        True, "true: the gradient of full unrolling; false: TESLA's approximation"
    )

    @property
    def needed_loss(self) -> tuple[str, str] | None:
        """That of class indices."""
        return "ce", "labels that are class indices"

    @property
    def epochs_needed(self) -> dict[str, int]:
        """The last epoch at which a matched segment of a trajectory ends."""
        return {"start_below": self.start_below - 1 + self.expert_epochs}


class MTTSettings(TrajectorySettings):
    """Matching training trajectories (Cazenavette et al., CVPR 2022; TESLA: Cui et al. 2023)."""

    implementation: ClassVar[str] = "matching.mtt:MTT"
    pool: ClassVar[PoolName | None] = "experts"

    soft_labels: bool = setting(False, "labels by the expert that is to be reached")

    @property
    def needed_loss(self) -> tuple[str, str] | None:
        """That of class indices, or of soft labels."""
        return ("soft_ce", "soft_labels: true") if self.soft_labels else super().needed_loss


class FTDSettings(TrajectorySettings):
    """Flat trajectory distillation (Du et al., CVPR 2023)."""

    implementation: ClassVar[str] = "matching.ftd:FTD"
    pool: ClassVar[PoolName | None] = "flat_experts"

    ema: BelowOne = setting(
        0.999, "share of the images' average that a round keeps; the average is the product"
    )


RECIPE = RecipeChanges(loss="ce", lr=0.01, drop_momentum=True)  # lr: replaced by the learned one
METHODS = {
    "mtt": MTTSettings(rounds=5000, rate=0.001, recipe=RECIPE),
    "tesla": MTTSettings(rounds=10000, lr_images=100.0, start_below=20, exact=False, recipe=RECIPE),
    "ftd": FTDSettings(rounds=5000, recipe=RECIPE),
}
