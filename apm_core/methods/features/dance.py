"""Dual-view distribution alignment (DANCE).

Zhang et al., "DANCE: Dual-View Distribution Alignment for Dataset Condensation", IJCAI 2024. The
mean feature of the synthetic images of a class meets that of real ones under networks between the
beginning and the end of a training ("middle encoders"), and trained networks recognise the images
as their class (`interpolated.py`, which also lists what differs from the published code).
Published: 10,000 rounds, SGD at 0.01 times the images per class on pixels in [0, 1].
"""

from torch import Tensor

from apm_core.methods.base import Update
from apm_core.methods.features.interpolated import InterpolatedFeatures
from apm_core.methods.movers import Momentum, State
from apm_core.settings.methods.dance import DANCESettings
from apm_core.training.recipe import Recipe


class DANCE(InterpolatedFeatures):
    """Moves the images of a class to where their mean feature is that of real ones.

    The gradient of a mean over n images falls as 1/n in each of them: `lr_images` is times n, the
    images per class of the shard.
    """

    def __init__(self, settings: DANCESettings, *, name: str, recipe: Recipe) -> None:
        super().__init__(settings, name=name, recipe=recipe)
        self.movers = {"images": Momentum(settings.lr_images, momentum=settings.momentum_images)}

    def step(self, state: State, index: int) -> Update:
        """Match the mean features, and calibrate."""
        figures, gradient, _ = self.follow(state, index, mean_distance)
        return Update(figures, {"images": self.job.ipc * gradient})


def mean_distance(real: Tensor, synthetic: Tensor) -> Tensor:
    """Squared distance of the mean features, of (n, D) and (m, D); 0-d, differentiable."""
    return (synthetic.mean(dim=0) - real.mean(dim=0)).square().sum()
