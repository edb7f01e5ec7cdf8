"""Difficulty-aligned trajectory matching (DATM).

Guo et al., "Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching", ICLR
2024. MTT with labels that are learned too, as logits under soft cross-entropy, and with a choice of
epochs to match: t is drawn from T-..b-1, where b grows from T to T+ over the first rounds, early
epochs for small sets and late ones for large. It starts from images that an expert classifies
correctly, labelled with the mean logits of the experts that do. A round whose distance is above the
threshold changes nothing.

Deviations from the published code, apart from those of `mtt.py` that concern the gradient, the rate
and the random streams: where an expert classifies too few images of a class correctly, those of the
next experts are added for this class alone (published: the next expert from there on), and random
ones in the end, with the mean logits of all experts; `start: real` has the same labels (published:
the logits of one expert, right or wrong). With tiles the labels of the start are those of the
images before they are stored.
"""

from apm_core.methods.base import Job, Method, Shard, Update, require_batch
from apm_core.methods.matching.experts import (
    Experts,
    figures_of,
    inner_training,
    movers_of,
    start_of,
)
from apm_core.methods.matching.trajectory import InnerTraining
from apm_core.methods.movers import Momentum, State
from apm_core.methods.passes import Extent, Passes
from apm_core.methods.shared.recognised import correct_logits, correct_shard
from apm_core.settings.methods.datm import DATMSettings
from apm_core.training.losses.soft_ce import loss as soft_ce
from apm_core.training.recipe import Recipe


class DATM(Method):
    """Moves images, label logits and learning rate along experts of growing age.

    The recipe's augmentation is that of the inner steps; its loss is soft_ce.
    """

    def __init__(self, settings: DATMSettings, *, name: str, recipe: Recipe) -> None:
        super().__init__(settings, name=name, recipe=recipe)
        first, last = settings.start_below_first, settings.start_below
        self.first = last if first is None else first
        self.skip = 0  # parameters, the first, that the distance leaves out
        self.inner = InnerTraining(settings.steps, settings.batch, recipe.augment)
        labels = Momentum(settings.lr_labels, momentum=settings.momentum_labels)
        self.movers = {**movers_of(settings), "targets": labels}

    def passes(self, extent: Extent) -> Passes:
        """The inner steps."""
        return self.inner.passes(extent.images, 0, self.inner.steps)

    def init(self, job: Job) -> State:
        """Images, what the experts say about them, and the rate."""
        self.attach(job)
        pool, exact = job.teachers, job.compute.exact()
        experts = (pool.net, pool.vectors)
        if self.settings.start == "correct":
            images, classes = correct_shard(job.data, *experts, exact, job.ipc, job.shard)
        else:
            images, classes = job.real_images()
        require_batch(self.key("batch"), self.settings.batch, images)
        state = start_of(self.settings, images, classes, job)
        labels = correct_logits(*experts, state["images"], state["classes"], exact)
        return {**state, "targets": labels}

    def attach(self, job: Job) -> None:
        """Hold the experts."""
        self.job = job
        self.training = inner_training(
            job, self.inner, soft_ce, exact=self.settings.exact, learn_targets=True
        )
        self.experts = Experts(job, self)

    def epochs(self, index: int) -> range:
        """The epochs that round `index` may start from."""
        last = self.settings.start_below
        grown = (last - self.first) * index // self.settings.expand_until
        return range(self.settings.start_from, min(last, self.first + grown))

    def step(self, state: State, index: int) -> Update:
        """The gradient of the distance from the end of a piece of one expert's trajectory, or none
        where the distance is above the threshold.
        """
        stream, images = (*self.job.stream, index), state["images"]
        start, target = self.experts.piece(self.epochs(index), *stream)
        steps = self.inner.draw(len(images), images.device, *stream)
        targets, rate = state["targets"], state["rate"]
        match = self.training.match(start, target, steps, images, targets, rate, self.skip)
        figures = {**figures_of(match), "rate": float(rate)}
        if figures["match"] > self.settings.threshold:
            return Update({**figures, "gradient": 0.0})  # whatever it is, it is not used
        gradients = {"images": match.images, "rate": match.rate, "targets": match.targets}
        return Update(figures, gradients)

    def finish(self, state: State) -> Shard:
        """The images with their label logits and the learned rate."""
        shard = super().finish(state)
        return Shard(shard.images, shard.classes, state["targets"].cpu(), float(state["rate"]))
