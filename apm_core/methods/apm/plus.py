"""Adversarial prediction matching with what proved useful (`apm_plus`).

What each part does to the accuracy on held-out images of CIFAR-10 at 1, 10 and 50 images per class,
in points beside one base (`benchmarks/results/ablation_cpu.json`):
- Teachers of early epochs (`teacher_epochs`): +6, +4 and +2 over fully trained ones;
  their mean for labels (`labels`), +1, +4 and +5; images that move further, 0, +3, +4.
- One image per class has to be typical: a weight of 10 for the cross-entropy, +9, augmentation in
  the image loss, +2, and last rounds that go through training (`unrolled`, see `bptt.py`), +4.
- A start from recognised images (`start`): +2, +1 and +0.5.
- The logarithm: +2, -2, 0.
Also tried, and worth less than the spread between sets: several students in a period, an average of
the images, a range of epochs that expands, labels and learning rate learned at the end.
"""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from apm_core.errors import ConfigError
from apm_core.methods.apm.apm import APM
from apm_core.methods.base import Job, Method, Shard, Update
from apm_core.methods.bptt import BPTT
from apm_core.methods.movers import State
from apm_core.methods.shared.recognised import correct_shard
from apm_core.settings.methods.apm import APMPlusSettings
from apm_core.settings.methods.bptt import BPTTSettings
from apm_core.training.recipe import Recipe


class APMPlus(Method):
    """Rounds that match predictions, then rounds that go through training, on the same images.

    The latter begin at the images and their classes, and learn images, labels and rate.
    """

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

    def init(self, job: Job) -> State:
        """Real images, or such that the teachers recognise."""
        self.attach(job)
        correct = self.settings.start == "correct"
        images, classes = self._recognised(job) if correct else job.real_images()
        return self.matching.state_of(self.matching.job, images, classes)

    def _recognised(self, job: Job) -> tuple[Tensor, Tensor]:
        """Images that teachers classify correctly as they were after the last of their epochs."""
        pool, compute, epochs = job.teachers, job.compute, self.settings.teacher_epochs
        vectors = pool.after(epochs[-1] if epochs else None)
        images, classes = correct_shard(
            job.data, pool.net, vectors, compute.exact(), job.ipc, job.shard
        )
        return images.to(job.home or compute.device), classes.to(compute.device)

    def attach(self, job: Job) -> None:
        """Share the rounds out."""
        self.job, unrolled = job, self.settings.unrolled.rounds
        self.last = job.rounds - unrolled  # round that matches predictions
        if job.rounds and self.last < 0:
            raise ConfigError(
                f"{self.key('unrolled.rounds')}: {unrolled} is more than all rounds: {job.rounds}"
            )
        self.matching.attach(replace(job, rounds=max(0, self.last)))
        if self.unrolled:
            self.unrolled.attach(replace(job, rounds=unrolled))

    def step(self, state: State, index: int) -> Update:
        """Match predictions."""
        return self.matching.step(state, index)

    def round(self, state: State, index: int) -> dict[str, float]:
        """One round of the one kind or the other; the first through training takes over."""
        if index <= self.last:
            return super().round(state, index)
        ours = dict(state) if "targets" in state else self._handed_over(state)
        figures = self.unrolled.round(ours, index)
        state |= ours
        return figures

    def rehearse(self, state: State, clock: Callable[[], float]) -> tuple[int, float]:
        """Both kinds, each for its share of the rounds."""
        images, seconds = self.matching.rehearse(state, clock)
        if self.unrolled:
            share = self.settings.unrolled.rounds / (self.job.rounds + 1)
            _, other = self.unrolled.rehearse(self._handed_over(state), clock)
            seconds += share * (other - seconds)
        return images, seconds

    def placed(self, state: State, job: Job) -> State:
        """The rounds through training have all on the device."""
        rounds = self.unrolled if "targets" in state else self.matching
        return rounds.placed(state, job)

    def finish(self, state: State) -> Shard:
        """The images, with labels and rate where these were learned."""
        return self.unrolled.finish(state) if "targets" in state else super().finish(state)

    def _handed_over(self, state: State) -> State:
        """The state of the rounds through training where the matching ends."""
        return self.unrolled.begin(state["images"], state["classes"])
