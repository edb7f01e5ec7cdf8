"""Settings of neural characteristic function matching."""

from typing import ClassVar, Literal

from apm_core.settings.method import Conditions, Contradiction
from apm_core.settings.methods.dance import FeatureSettings
from apm_core.settings.section import Above, AtLeast, BelowOne, Count, setting
from apm_core.settings.training import RecipeChanges


class NCFMSettings(FeatureSettings):
    """Neural characteristic function matching (Wang et al., CVPR 2025)."""

    implementation: ClassVar[str] = "features.ncfm:NCFM"

    optimizer: Literal["adam", "sgd"] = setting(
        "adam", "of the images; published: sgd for CIFAR-100 at IPC 10, else adam"
    )
    lr_images: Above = setting(
        0.01, "step of the images; published, on pixels: 0.001 a class (adam), 0.01 (sgd)"
    )
    momentum_images: BelowOne = setting(0.5, "of the image steps by sgd")
    frequencies: Count = setting(
        4096, "at which characteristic functions are compared; paper: 1024"
    )
    amplitude: AtLeast = setting(0.5, "weight of the squared difference of amplitudes")
    phase: AtLeast = setting(0.5, "weight of the difference of phases, which amplitudes scale")
    sampler: bool = setting(
        False, "true: frequencies of a network that ascends the distance; false: random ones"
    )
    lr_sampler: Above = setting(1e-3, "of the sampler, SGD")
    momentum_sampler: BelowOne = setting(0.5, "of the sampler's steps")

    def contradiction(self, conditions: Conditions) -> Contradiction | None:
        """Also nothing to match, and a sampler, which normalises over frequencies, with one."""
        if not self.amplitude + self.phase:
            return "phase", "0 with amplitude: 0 leaves nothing to match"
        if self.sampler and self.frequencies < 2:
            return "frequencies", "the sampler needs at least 2"
        return super().contradiction(conditions)


METHODS = {
    "ncfm": NCFMSettings(
        rounds=20000,
        recipe=RecipeChanges(loss="ce", optimizer="adam", lr=1e-3, batch=128, weight_decay=0.0),
    )
}
# Adam moves stored pixels, of standard deviation 0.22
ENTRIES = {"ncfm_tiles": {"method": "ncfm", "tiles": 2, "lr_images": 0.0022}}
