"""Settings of the matching of features of interpolated teachers, and of DANCE."""

from typing import ClassVar

from apm_core.settings.method import IterativeSettings, LabelsOf
from apm_core.settings.section import Above, AtLeast, BelowOne, Count, setting
from apm_core.settings.training import AUGMENT, Augmentation, PoolName, RecipeChanges


class FeatureSettings(IterativeSettings):
    """What methods have in common that match features of interpolated teachers."""

    pool: ClassVar[PoolName | None] = "teachers"
    embeds: ClassVar[bool] = True
    recipe_keys: ClassVar[frozenset[str]] = frozenset()
    start_keys: ClassVar[frozenset[str] | None] = frozenset()
    labels_of: ClassVar[LabelsOf] = "classes"

    batch_real: Count = setting(1024, "real images of a class in a round")
    calibration: AtLeast = setting(
        1.0, "weight of the trained teacher's cross-entropy on the images"
    )
    augment: Augmentation = setting(
        "color_crop_cutout", f"{AUGMENT}: all of them, as drawn for a class, in the image update"
    )


class DANCESettings(FeatureSettings):
    """Dual-view distribution alignment (Zhang et al., IJCAI 2024)."""

    implementation: ClassVar[str] = "features.dance:DANCE"

    lr_images: Above = setting(
        0.2,
        "step of the images, times the (decoded) images per class; on pixels in [0, 1] of standard"
        " deviation 0.22, the published 0.01",
    )
    momentum_images: BelowOne = setting(0.5, "of the image steps")
    batch_real: Count = setting(128, "real images of a class in a round")


METHODS = {"dance": DANCESettings(rounds=10000, recipe=RecipeChanges(loss="ce", lr=0.01, batch=64))}
ENTRIES = {"dance_tiles": {"method": "dance", "tiles": 2}}
