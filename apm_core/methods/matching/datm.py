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
the logits of one expert, right or wrong).
"""

from apm_core.errors import ConfigError
from apm_core.methods.base import Job, Method, Shard, State, are_finite, require_batch, require_loss
from apm_core.methods.matching.experts import Experts, Outer, figures_of, inner_training
from apm_core.methods.matching.trajectory import Inner
from apm_core.methods.shared.recognised import correct_logits, correct_shard
from apm_core.training.losses.soft_ce import loss as soft_ce
from apm_core.training.recipe import Recipe

STARTS = ("correct", "real")


class DATM(Method):
    """The method of one shard.

    Args:
        name: of the method in the config.
        recipe: its augmentation is that of the inner steps; its loss is soft_ce.
        lr_images, momentum_images: of the image steps; the momentum also of the rate's.
        lr_labels, momentum_labels: of the steps of the label logits.
        rate: of the inner training at the start.
        lr_rate: step of the rate.
        steps: N, inner steps.
        expert_epochs: M.
        start_from: T-, the first epoch to start from.
        start_below_first: T, the bound of the starts in round 0; None: T+ from the beginning.
        start_below: T+, the bound in the end.
        expand_until: the round in which the bound reaches T+.
        threshold: the largest distance with which a round counts.
        batch: images of an inner step; None: all of the shard.
        exact: the gradient of full unrolling, or TESLA's approximation.
        start: "correct" images, or "real" ones.
    """

    def __init__(
        self,
        *,
        name: str,
        recipe: Recipe,
        lr_images: float,
        momentum_images: float,
        lr_labels: float,
        momentum_labels: float,
        rate: float,
        lr_rate: float,
        steps: int,
        expert_epochs: int,
        start_from: int,
        start_below_first: int | None,
        start_below: int,
        expand_until: int,
        threshold: float,
        batch: int | None,
        exact: bool,
        start: str,
    ) -> None:
        super().__init__(name=name)
        require_loss(self.key("recipe.loss"), recipe, "soft_ce", "learned labels")
        if start not in STARTS:
            raise ConfigError(f"{self.key('start')}: {start!r} is neither correct nor real")
        first = start_below if start_below_first is None else start_below_first
        if not start_from < first <= start_below:
            raise ConfigError(
                f"{self.key('start_from')}: {start_from}, start_below_first: {start_below_first}"
                f" and start_below: {start_below} leave no epoch to start from: the first must be"
                " below the second, and the second at most the third"
            )
        self.inner = Inner(steps, batch, recipe.augment)
        self.outer = Outer(lr_images, momentum_images, rate, lr_rate)
        self.lr_labels, self.momentum_labels = lr_labels, momentum_labels
        self.expert_epochs, self.exact, self.start = expert_epochs, exact, start
        self.start_from, self.first, self.start_below = start_from, first, start_below
        self.expand_until, self.threshold = expand_until, threshold

    def init(self, job: Job) -> State:
        """Images at rest, what the experts say about them, and the rate."""
        self.attach(job)
        pool, device, exact = job.teachers, job.compute.device, job.compute.exact()
        given = (job.data, pool.net, pool.vectors, exact, job.ipc, job.shard)
        images, classes = correct_shard(*given) if self.start == "correct" else job.real_images()
        images, classes = images.to(device), classes.to(device)
        require_batch(self.key("batch"), self.inner.batch, images)
        targets = correct_logits(pool.net, pool.vectors, images, classes, exact)
        state = self.outer.start(images, classes)
        return {**state, "targets": targets, "targets_velocity": targets.new_zeros(targets.shape)}

    def attach(self, job: Job) -> None:
        """Hold the experts."""
        self.job = job
        self.training = inner_training(
            job, self.inner, soft_ce, exact=self.exact, learn_targets=True
        )
        self.experts = Experts(job, self, below=self.start_below, length=self.expert_epochs)

    def epochs(self, index: int) -> range:
        """The epochs that round `index` may start from."""
        grown = (self.start_below - self.first) * index // self.expand_until
        return range(self.start_from, min(self.start_below, self.first + grown))

    def step(self, state: State, index: int) -> dict[str, float]:
        """Match a piece of one expert's trajectory, unless it is too far."""
        stream, images = (*self.job.stream, index), state["images"]
        start, target = self.experts.piece(self.epochs(index), *stream)
        steps = self.inner.draw(len(images), images.device, *stream)
        given = (images, state["targets"], state["rate"])
        found = self.training.match(start, target, steps, *given)
        figures = figures_of(found)
        if figures["match"] > self.threshold:
            figures["gradient"] = 0.0  # whatever it is, it is not used
        if are_finite(figures) and figures["match"] <= self.threshold:
            self.outer.move(state, found)
            velocity = self.momentum_labels * state["targets_velocity"] + found.targets
            state["targets_velocity"] = velocity
            state["targets"] = state["targets"] - self.lr_labels * velocity
        rates = {"lr_images": self.outer.lr_images, "lr_labels": self.lr_labels}
        return {**figures, **rates, "rate": float(state["rate"])}

    def finish(self, state: State) -> Shard:
        """The images with their label logits and the learned rate."""
        shard = super().finish(state)
        return Shard(shard.images, shard.classes, state["targets"].cpu(), float(state["rate"]))
