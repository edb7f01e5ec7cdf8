"""Settings of distribution matching."""

from typing import ClassVar

from apm_core.settings.method import IterativeSettings, LabelsOf
from apm_core.settings.section import Above, BelowOne, Count, setting
from apm_core.settings.training import RecipeChanges


class DMSettings(IterativeSettings):
    """Distribution matching (Zhao & Bilen, WACV 2023)."""

    implementation: ClassVar[str] = "dm:DM"
    embeds: ClassVar[bool] = True
    recipe_keys: ClassVar[frozenset[str]] = frozenset({"augment"})
    start_keys: ClassVar[frozenset[str] | None] = frozenset()
    labels_of: ClassVar[LabelsOf] = "classes"

    lr_images: Above = setting(1.0, "step of the images")
    momentum_images: BelowOne = setting(0.5, "of the image steps")
    batch_real: Count = setting(256, "real images of a class in a round")


METHODS = {
    "dm": DMSettings(rounds=20000, recipe=RecipeChanges(loss="ce", lr=0.01, drop_momentum=True))
}
