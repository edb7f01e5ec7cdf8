"""Settings of difficulty-aligned trajectory matching."""

from typing import ClassVar, Literal

from apm_core.settings.method import LEARNED, Conditions, Contradiction
from apm_core.settings.methods.mtt import TrajectorySettings
from apm_core.settings.section import Above, BelowOne, Count, Index, setting
from apm_core.settings.training import PoolName, RecipeChanges


class DATMSettings(TrajectorySettings):
    """Difficulty-aligned trajectory matching (Guo et al., ICLR 2024)."""

    implementation: ClassVar[str] = "matching.datm:DATM"
    pool: ClassVar[PoolName | None] = "flat_experts"

    lr_labels: Above = setting(2.0, "step of the labels, which are logits")
    momentum_labels: BelowOne = setting(0.9, "of the label steps")
    start_from: Index = setting(0, "T-: an expert's epochs to start from are T- to b - 1")
    start_below_first: Count | None = setting(20, "T: b in round 0; null: T+")
    expand_until: Count = setting(2000, "round in which b reaches T+")
    threshold: Above = setting(1.0, "a round whose distance is larger changes nothing")
    start: Literal["correct", "real"] = setting(
        "correct", "images that the experts classify correctly, or real ones"
    )

    @property
    def needed_loss(self) -> tuple[str, str] | None:
        """That of learned labels."""
        return LEARNED

    def contradiction(self, conditions: Conditions) -> Contradiction | None:
        """Also bounds that leave no epoch."""
        first, last = self.start_below_first, self.start_below
        if not self.start_from < (last if first is None else first) <= last:
            return "start_from", (
                f"{self.start_from}, start_below_first: {first} and start_below: {last} leave no"
                " epoch to start from: the first must be below the second, and the second at most"
                " the third"
            )
        return super().contradiction(conditions)


class PADSettings(DATMSettings):
    """DATM with prioritized alignment (Li et al. 2024)."""

    implementation: ClassVar[str] = "matching.pad:PAD"
    pool: ClassVar[PoolName | None] = "ordered_experts"

    skip: BelowOne = setting(
        0.5, "share of the parameters, from the input on, that the distance leaves out"
    )


RECIPE = RecipeChanges(loss="soft_ce", lr=0.01, batch=128, drop_momentum=True)
METHODS = {
    "datm": DATMSettings(rounds=10000, steps=80, recipe=RECIPE),
    "pad": PADSettings(rounds=10000, steps=80, recipe=RECIPE),
}
