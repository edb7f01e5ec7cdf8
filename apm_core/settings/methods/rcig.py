"""Settings of reparameterised convexified implicit gradients."""

from typing import ClassVar

from apm_core.settings.methods.frepo import KernelSettings
from apm_core.settings.section import Above, AtLeast, BelowOne, Count, setting
from apm_core.settings.training import RecipeChanges


class RCIGSettings(KernelSettings):
    """Convexified implicit gradients (Loo et al., ICML 2023).

    `lr_images` is AdaBelief's; `ridge` is per distilled image (published: 0.05 for ImageNette and
    ImageWoof). For the network frepo_conv the published recipe is {optimizer: adam, lr: 1.0e-4,
    weight_decay: 0, batch: 256, schedule: cosine}.
    """

    implementation: ClassVar[str] = "kernel.rcig:RCIG"

    lr_temperature: AtLeast = setting(3e-2, "of the logarithm of the temperature, AdaBelief")
    inner_steps: Count = setting(
        20, "of Adam on the linearised body, and as many for the Hessian's system"
    )
    softplus: Above | None = setting(
        60.0, "sharpness of the softplus that stands in for ReLU; null (for depth 4 and more): ReLU"
    )
    average: BelowOne = setting(
        0.99, "share of the average of images and labels that a round keeps"
    )


METHODS = {
    "rcig": RCIGSettings(
        rounds=15000,
        lr_images=3e-3,
        ridge=5e-4,
        networks=30,
        lr_network=5e-5,
        recipe=RecipeChanges(loss="half_mse", lr=0.01, warmup=500, floor=0.01),
    )
}
