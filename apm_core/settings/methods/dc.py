"""Settings of gradient matching, without and with siamese augmentation."""

from typing import ClassVar, Literal

from apm_core.settings.method import IterativeSettings, LabelsOf
from apm_core.settings.section import Above, BelowOne, Count, setting
from apm_core.settings.training import RecipeChanges


class DCSettings(IterativeSettings):
    """Gradient matching (Zhao et al., ICLR 2021; Zhao & Bilen, ICML 2021)."""

    implementation: ClassVar[str] = "dc:DC"
    recipe_keys: ClassVar[frozenset[str]] = frozenset({"augment"})
    start_keys: ClassVar[frozenset[str] | None] = frozenset({"start"})
    labels_of: ClassVar[LabelsOf] = "classes"

    lr_images: Above = setting(0.1, "step of the images")
    momentum_images: BelowOne = setting(0.5, "of the image steps")
    batch_real: Count = setting(256, "real images of a class in a round")
    outer_loops: Count = setting(50, "rounds that one network lives; by IPC 1, 10, 50: 1, 10, 50")
    inner_epochs: Count = setting(
        10, "passes over the images between two rounds; by IPC 1, 10, 50: 1, 50, 10"
    )
    lr_network: Above = setting(0.01, "of the network, plain SGD")
    start: Literal["real", "noise"] = setting("real", "real images or Gaussian noise")


METHODS = {
    "dc": DCSettings(
        rounds=50000,
        start="noise",
        recipe=RecipeChanges(loss="ce", lr=0.01, augment="none", drop_momentum=True),
    ),
    "dsa": DCSettings(rounds=50000, recipe=RecipeChanges(loss="ce", lr=0.01, drop_momentum=True)),
}
