"""Flat trajectory distillation (FTD).

Du et al., "Minimizing the Accumulated Trajectory Error to Improve Dataset Distillation", CVPR 2023.
MTT along experts that were trained towards flat minima, by the gradient h - alpha g_across at
w + rho w^2 g / | |w| g | (GSAM; `training/trainer.py`), so that a student that does not start
exactly where the expert was still follows it. The product is the moving average of the images over
the rounds, a <- d a + (1 - d) u, from the first images on and without correction for its start.

Deviations from the published code: those of `mtt.py`; and the averaged images are evaluated, as all
sets here, with networks from scratch, while the published code goes on with the network that it has
just trained on the images themselves, for as long again, which reads higher. The published alpha is
1 for CIFAR-10 with 50 images per class, CIFAR-100 and Tiny ImageNet, and 0.3 for CIFAR-10 with 1 or
10; all sets here share the experts of `flat_experts`, whose alpha is 0.3 as configured.
"""

from dataclasses import replace

from apm_core.methods.matching.mtt import MTT
from apm_core.methods.movers import Average
from apm_core.settings.methods.mtt import FTDSettings
from apm_core.training.recipe import Recipe


class FTD(MTT):
    """MTT along flat experts, with the images' moving average as its product."""

    def __init__(self, settings: FTDSettings, *, name: str, recipe: Recipe) -> None:
        super().__init__(settings, name=name, recipe=recipe)
        self.movers["images"] = replace(self.movers["images"], average=Average(settings.ema))
