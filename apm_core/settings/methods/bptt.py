"""Settings of back-propagation through training."""

from typing import ClassVar

from apm_core.settings.method import LEARNED, Conditions, Contradiction, IterativeSettings
from apm_core.settings.section import Above, AtLeast, Count, Index, Section, setting
from apm_core.settings.training import RecipeChanges


class Unrolling(Section):
    """A training that is differentiated: its steps, and those of what is learned by it."""

    lr_images: Above = setting(1e-3, "of the images (Adam)")
    lr_labels: AtLeast = setting(1e-2, "of the label logits (Adam)")
    lr_rate: AtLeast = setting(1e-2, "of the logarithm of the learned rate (Adam)")
    rate: Above = setting(0.02, "learning rate of the inner training at the start; it is learned")
    before: Index = setting(160, "steps before the window, at most")
    window: Count = setting(40, "steps that are differentiated")
    batch_real: Count = setting(512, "real images in a round")


class BPTTSettings(Unrolling, IterativeSettings):
    """Back-propagation through training, truncated at random (Feng et al. 2024)."""

    implementation: ClassVar[str] = "bptt:BPTT"
    recipe_keys: ClassVar[frozenset[str]] = frozenset({"augment"})

    batch: Count | None = setting(None, "images of an inner step; null: all of the shard")

    @property
    def needed_loss(self) -> tuple[str, str] | None:
        """That of learned labels."""
        return LEARNED


class ATBPTTSettings(BPTTSettings):
    """Back-propagation through training in a window that adapts (Li et al. 2025)."""

    implementation: ClassVar[str] = "at_bptt:ATBPTT"

    spread: Index = setting(10, "d: the window has window - d to window + d steps")
    period: Count = setting(10, "rounds that share a window, and whose mean accuracy is compared")
    gain_early: AtLeast = setting(1.5, "points of accuracy; a period that gains less is a calm one")
    calm_early: Count = setting(30, "calm periods in a row that end the early stage")
    gain_middle: AtLeast = setting(1.0, "as gain_early, in the middle stage")
    calm_middle: Count = setting(25, "calm periods in a row that end the middle stage")

    def contradiction(self, conditions: Conditions) -> Contradiction | None:
        """Also a spread that leaves no window."""
        if self.spread < self.window and self.spread <= self.before:
            return super().contradiction(conditions)
        return "spread", (
            f"{self.spread} leaves no window of window - spread and window + spread steps: it must"
            f" be below window: {self.window}, and at most before: {self.before}"
        )


RECIPE = RecipeChanges(loss="soft_ce", lr=0.01, drop_momentum=True)
METHODS = {
    "bptt": BPTTSettings(rounds=10000, recipe=RECIPE),
    "at_bptt": ATBPTTSettings(rounds=10000, recipe=RECIPE),
}
