"""Adversarial prediction matching with additions (`apm_plus`).

The effect of each addition on the accuracy on held-out images of CIFAR-10 at 1, 10 and 50 images
per class, in points against one baseline (`benchmarks/results/ablation_cpu.json`):
- Teachers of early epochs (`teacher_epochs`): +6, +4 and +2 over fully trained ones;
  their mean for labels (`labels`), +1, +4 and +5; images that move further, 0, +3, +4.
- At one image per class: a weight of 10 for the cross-entropy, +9, augmentation in the image loss,
  +2, and last rounds by back-propagation through training (`unrolled`, see `bptt.py`), +4.
- A start from correctly classified images (`start`): +2, +1 and +0.5.
- The logarithm: +2, -2, 0.
Without an effect beyond the spread between sets: several students in a period, an average of the
images, a range of epochs that expands, labels and learning rate learned at the end.
"""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from apm_core.data.tiles import Tiles
from apm_core.methods.apm.apm import APM
from apm_core.methods.base import Job, Method, Shard, Update
from apm_core.methods.bptt import BPTT
from apm_core.methods.movers import State
from apm_core.methods.passes import Extent, Passes
from apm_core.methods.shared.recognised import correct_shard
from apm_core.settings.methods.apm import APMPlusSettings
from apm_core.settings.methods.bptt import BPTTSettings
from apm_core.training.recipe import Recipe


class APMPlus(Method):
    """Runs rounds of APM, then rounds of BPTT on the same images.

    The rounds of BPTT start from the images and their classes; they learn images, labels and rate.
    """

    in_segments = True

    def __init__(self, settings: APMPlusSettings, *, name: str, recipe: Recipe) -> None:
        super().__init__(settings, name=name, recipe=recipe)
        self.matching = APM(
            settings,
            name=name,
            recipe=recipe,
            augment_images=settings.augment_images,
            teacher_epochs=settings.teacher_epochs,
        )
        self.movers = self.matching.movers
        unrolled = settings.unrolled.model_dump(exclude={"rounds"})
        self.unrolled = (
            BPTT(BPTTSettings(batch=settings.batch, **unrolled), name=name, recipe=recipe)
            if settings.unrolled.rounds
            else None
        )

    def store_as(self, tiles: Tiles) -> None:
        """Both methods keep their images as tiles."""
        self.matching.store_as(tiles)
        self.movers = self.matching.movers
        if self.unrolled:
            self.unrolled.store_as(tiles)

    def passes(self, extent: Extent) -> Passes:
        """The mean of both methods, weighted by the number of rounds."""
        found = self.matching.passes(extent)
        if not self.unrolled:
            return found
        share = self.settings.unrolled.rounds / max(1, extent.rounds)
        return (1 - share) * found + share * self.unrolled.passes(extent)

    def init(self, job: Job) -> State:
        """Start from real images, or from real images that the teachers classify correctly."""
        self.attach(job)
        correct = self.settings.start == "correct"
        images, classes = self._correct_images(job) if correct else job.real_images()
        return self.matching.state_of(images, classes)

    def _correct_images(self, job: Job) -> tuple[Tensor, Tensor]:
        """Real images that the teachers, as after the last of their epochs, classify correctly."""
        pool, compute, epochs = job.teachers, job.compute, self.settings.teacher_epochs
        vectors = pool.after(epochs[-1] if epochs else None)
        images, classes = correct_shard(
            job.data, pool.net, vectors, compute.exact(), job.ipc, job.shard
        )
        return images.to(job.home or compute.device), classes.to(compute.device)

    def attach(self, job: Job) -> None:
        """Divide the rounds among the two methods."""
        self.job, unrolled = job, self.settings.unrolled.rounds
        self.last = job.rounds - unrolled  # round of APM
        self.matching.attach(replace(job, rounds=max(0, self.last)))
        if self.unrolled:
            self.unrolled.attach(replace(job, rounds=unrolled))

    def step(self, state: State, index: int) -> Update:
        """A step of APM."""
        return self.matching.step(state, index)

    def round(self, state: State, index: int) -> dict[str, float]:
        """Run a round of APM or of BPTT; the first round of BPTT replaces the state."""
        if index <= self.last:
            return super().round(state, index)
        moved = dict(state) if "targets" in state else self._unrolled_state(state)
        figures = self.unrolled.round(moved, index)
        state |= moved
        return figures

    def rehearse(self, state: State, clock: Callable[[], float]) -> tuple[int, float]:
        """Rehearse both methods; the seconds are their mean, weighted by the number of rounds."""
        images, seconds = self.matching.rehearse(state, clock)
        if self.unrolled:
            share = self.settings.unrolled.rounds / (self.job.rounds + 1)
            _, other = self.unrolled.rehearse(self._unrolled_state(state), clock)
            seconds += share * (other - seconds)
        return images, seconds

    def placed(self, state: State, job: Job) -> State:
        """The state with each tensor on its device; the rounds of BPTT keep all on the device."""
        method = self.unrolled if "targets" in state else self.matching
        return method.placed(state, job)

    def finish(self, state: State) -> Shard:
        """The shard, with labels and rate where rounds of BPTT learned them."""
        return self.unrolled.finish(state) if "targets" in state else super().finish(state)

    def _unrolled_state(self, state: State) -> State:
        """The initial state of the rounds of BPTT, from the images of `state`."""
        return self.unrolled.at_rest(self.unrolled.state_of(state["images"], state["classes"]))
