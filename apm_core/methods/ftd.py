"""Flat trajectory distillation (FTD).

Du et al., "Minimizing the Accumulated Trajectory Error to Improve Dataset Distillation", CVPR 2023.
MTT along experts that were trained towards flat minima, by the gradient h - alpha g_across at
w + rho w^2 g / | |w| g | (GSAM; `apm_core.train.Trainer`), so that a student that does not start
exactly where the expert was still follows it. The product is the moving average of the images over
the rounds, a <- d a + (1 - d) u, from the first images on and without correction for its start.

Deviations from the published code: those of `mtt.py`; and the averaged images are evaluated, as all
sets here, with networks from scratch, while the published code goes on with the network that it has
just trained on the images themselves, for as long again, which reads higher.
"""

from apm_core.methods.base import Job, Method, Shard, State, are_finite
from apm_core.methods.mtt import MTT
from apm_core.train import Recipe


class FTD(Method):
    """The method of one shard.

    Args:
        name, recipe, lr_images, momentum_images, rate, lr_rate, steps, expert_epochs, start_below,
            batch, exact: as in `MTT`.
        ema: d, the share of the average that a round keeps.
    """

    def __init__(
        self,
        *,
        name: str,
        recipe: Recipe,
        lr_images: float,
        momentum_images: float,
        rate: float,
        lr_rate: float,
        steps: int,
        expert_epochs: int,
        start_below: int,
        batch: int | None,
        exact: bool,
        ema: float,
    ) -> None:
        super().__init__(name=name)
        self.ema = ema
        self.matching = MTT(
            name=name,
            recipe=recipe,
            lr_images=lr_images,
            momentum_images=momentum_images,
            rate=rate,
            lr_rate=lr_rate,
            steps=steps,
            expert_epochs=expert_epochs,
            start_below=start_below,
            batch=batch,
            exact=exact,
            soft_labels=False,
        )

    def init(self, job: Job) -> State:
        """Real images at rest, which are their own average."""
        state = self.matching.init(job)
        return {**state, "average": state["images"]}

    def attach(self, job: Job) -> None:
        """Hold the experts."""
        self.matching.attach(job)

    def step(self, state: State, index: int) -> dict[str, float]:
        """Match a piece of one expert's trajectory, then average."""
        figures = self.matching.step(state, index)
        if are_finite(figures):
            state["average"] = self.ema * state["average"] + (1 - self.ema) * state["images"]
        return figures

    def finish(self, state: State) -> Shard:
        """The averaged images with their classes and the learned rate."""
        return self.matching.finish({**state, "images": state["average"]})
