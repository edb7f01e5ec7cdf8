"""Settings of the kernel methods' pool of networks, and of FRePo."""

from typing import ClassVar

from apm_core.settings.method import IterativeSettings
from apm_core.settings.section import Above, Count, setting
from apm_core.settings.training import Architecture, RecipeChanges


class KernelSettings(IterativeSettings):
    """What the methods share that solve for a head on the distilled images."""

    embeds: ClassVar[bool] = True
    recipe_keys: ClassVar[frozenset[str]] = frozenset()

    network: Architecture | None = setting(
        None, "architecture to distil with, one with an embedding; null: that of the teachers"
    )
    lr_images: Above = setting(3e-4, "of images and labels")
    batch_real: Count = setting(1024, "real images in a round")
    ridge: Above = setting(1e-6, "of the regression")
    flip: bool = setting(
        True, "mirrored copies too; false where a mirrored image is of another class"
    )
    networks: Count = setting(10, "in the pool")
    lifetime: Count = setting(100, "steps of a network before a fresh one takes its place")
    lr_network: Above = setting(3e-4, "of the pool's networks, Adam")

    @property
    def needed_loss(self) -> tuple[str, str] | None:
        """That of centred labels."""
        return "half_mse", "centred labels"


class FRePoSettings(KernelSettings):
    """Neural feature regression with pooling (Zhou et al., NeurIPS 2022).

    `lr_images` is the share of their norm that images and labels move in a round, and falls along a
    cosine; `ridge` is relative to the mean diagonal of the kernel. For the network frepo_conv the
    published recipe is {optimizer: adam, lr: 3.0e-4, weight_decay: 0, batch: 500,
    schedule: cosine}.
    """

    implementation: ClassVar[str] = "kernel.frepo:FRePo"


METHODS = {
    "frepo": FRePoSettings(
        rounds=500000, recipe=RecipeChanges(loss="half_mse", lr=0.01, warmup=500, floor=0.01)
    )
}
