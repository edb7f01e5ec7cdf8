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

from typing import Any

from apm_core.methods.base import Job, Shard, State, are_finite
from apm_core.methods.matching.mtt import MTT


class FTD(MTT):
    """The method of one shard.

    Args:
        ema: d, the share of the average that a round keeps.
        matching: the arguments of `MTT`, with class labels.
    """

    def __init__(self, *, ema: float, **matching: Any) -> None:  # noqa: ANN401 - MTT checks them
        super().__init__(soft_labels=False, **matching)
        self.ema = ema

    def init(self, job: Job) -> State:
        """Real images at rest, which are their own average."""
        state = super().init(job)
        return {**state, "average": state["images"]}

    def step(self, state: State, index: int) -> dict[str, float]:
        """Match a piece of one expert's trajectory, then average."""
        figures = super().step(state, index)
        if are_finite(figures):
            state["average"] = self.ema * state["average"] + (1 - self.ema) * state["images"]
        return figures

    def finish(self, state: State) -> Shard:
        """The averaged images with their classes and the learned rate."""
        return super().finish({**state, "images": state["average"]})
