"""Adversarial prediction matching (APM).

Chen et al., "Dataset Distillation via Adversarial Prediction Matching", arXiv:2312.08912. A student
is trained on the distilled images with the logits of a teacher; then the images move to where the
student's predictions are furthest from the teacher's, while the teacher still recognises them.

Deviations from the published code, each a setting where it changes numbers:
- `keep_batch` (default true): the images updated in a refresh period are those its student was
  trained on; the published code draws another batch in each round.
- `logarithm` (default false, as the published code): Eq. 4 of the paper has -log of each image's
  distance.
- The teacher of a period never changes inside it (the published code overwrites it when it
  evaluates), and the number of checkpoints divides E (else the published code stores more than K).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from apm_core.data.examples import Examples
from apm_core.methods.base import Job, Method, Update, require_batch
from apm_core.methods.movers import Momentum, Rows, State
from apm_core.methods.passes import FORWARD, TO_IMAGES, TRAINED, Extent, Passes
from apm_core.nets.flat import FlatNet
from apm_core.runtime import streams
from apm_core.runtime.device import Compute
from apm_core.settings.methods.apm import APMSettings
from apm_core.training import augment
from apm_core.training.inference import forward_flops, logits
from apm_core.training.recipe import Recipe
from apm_core.training.trainer import Trainer

SMALLEST_DISTANCE = 1e-8  # keeps the logarithm of a perfect match finite
LABELLED = 250  # images that a teacher labels at a time: more of them take memory, and as long
LATE = 0.3  # share of the image rate from half of the rounds on


class APM(Method):
    """Moves the images to maximise the distance of the students' logits from their teacher's.

    Memory: the activations of one segment through the teacher and one checkpoint, or of one batch
    of a student's training, whichever is more; neither grows with the shard, K or the batch.

    Args:
        settings: of the method. Students are trained by the recipe with L1 on logits as loss.
        augment_images: augment in the image update too.
        teacher_epochs: the first and the last epoch after which a teacher is taken from its
            training; None: teachers are fully trained.
    """

    in_segments = True

    def __init__(
        self,
        settings: APMSettings,
        *,
        name: str,
        recipe: Recipe,
        augment_images: bool = False,
        teacher_epochs: Sequence[int] | None = None,
    ) -> None:
        super().__init__(settings, name=name, recipe=recipe)
        self.recipe = replace(recipe, loss="l1")
        last, checkpoints = recipe.passes - 1, settings.checkpoints  # E, K
        self.keep = frozenset(range(last // checkpoints, last + 1, last // checkpoints))
        self.strategy = recipe.augment if augment_images else "none"
        self.teacher_epochs = teacher_epochs
        momentum = settings.momentum_images
        self.movers = {"images": Momentum(self._rate, momentum=momentum, at_home=True)}

    def _rate(self, index: int) -> float:
        return self.settings.lr_images * (LATE if index >= self.job.rounds // 2 else 1.0)

    def passes(self, extent: Extent) -> Passes:
        """A student and its teacher's labels, shared by a period; then the images through the
        teacher and the checkpoints.
        """
        count = self.settings.batch or extent.images
        student = self.recipe.passes * Passes(
            TRAINED * count, math.ceil(count / self.recipe.batch)
        ) + Passes(FORWARD * count, 1)
        networks = len(self.keep) + 1
        update = Passes(networks * TO_IMAGES * count, networks)
        return (1 / self.settings.period) * student + update

    def init(self, job: Job) -> State:
        """Start from real images; round 0 draws the batch and trains the students of its period."""
        self.attach(job)
        return self.state_of(*job.real_images())

    def state_of(self, images: Tensor, classes: Tensor) -> State:
        """The state of `images` (N, C, H, W) of `classes` (N,).

        Raises ConfigError for a batch larger than the shard.
        """
        require_batch(self.key("batch"), self.settings.batch, images)
        return {"images": images, "classes": classes}

    def attach(self, job: Job) -> None:
        """Build and compile student and critic.

        Raises ConfigError when the pool lacks an epoch of `teacher_epochs`.
        """
        self.job, pool, compute, settings = job, job.teachers, job.compute, self.settings
        if self.teacher_epochs:
            pool.require_epochs(self.teacher_epochs, self.key("teacher_epochs"))
        shape, device = pool.spec.shape, compute.device
        count = settings.batch or job.ipc * shape.classes
        self.segment = min(job.segment or count, count)
        student = pool.spec.network(device)
        networks = job.rounds // settings.period + 1
        dtype = student.vector.dtype
        self.examples = Examples(
            torch.zeros(count, *shape.image, device=device, dtype=dtype),
            torch.zeros(count, shape.classes, device=device, dtype=dtype),
        )
        self.trainer = Trainer(student, self.recipe, compute, self.examples, networks=networks)
        self.critic = pool.spec.network(device)  # holds one checkpoint of the student
        self.critic.module.eval().requires_grad_(False)
        images, checkpoints = (job.rounds + 1) * count, len(self.keep)
        work = {
            "flops": 3.0 * forward_flops(self.critic, shape.image, compute) * images * checkpoints,
            "steps": (job.rounds + 1) * checkpoints * math.ceil(count / self.segment),
            "compile_from_s": self.critic.compile_from_s,
        }
        # not the teachers' network: the start is selected with it in plain float32
        self.critic.use_kernels(compute.wants_kernels(**work), compute.report)
        self._distance = compute.compiled(
            _distance_of(self.critic, compute, settings.logarithm), **work
        )
        self._predict = compute.compiled(_prediction_of(pool.net, compute), **work)

    def rehearse(self, state: State, clock: Callable[[], float]) -> tuple[int, float]:
        """Run one step of a student, and one checkpoint against the teacher on one segment."""
        batch = self._draw_batch(len(state["images"]), *self.job.stream, 0)
        self.place_batch(state, batch)
        self.job.teachers.load(0)
        per_student = self.trainer.rehearse(clock)
        started = clock()
        part = slice(0, self.segment)
        classes = state["classes"][batch[part]]
        leaf = self.examples.images[part].clone().requires_grad_()
        self.segment_gradient(leaf, classes, self.trainer.net.snapshot()[None])
        pair = clock() - started  # two networks of the K + 1
        pairs = (len(self.keep) + 1) / 2 * math.ceil(len(batch) / self.segment)
        return len(batch), per_student / self.settings.period + pair * pairs

    def step(self, state: State, index: int) -> Update:
        """Refresh teacher and student if the period is over, then compare them on the batch."""
        stream = (*self.job.stream, index)
        new_period = index % self.settings.period == 0
        if new_period or not self.settings.keep_batch:
            state["batch"] = self._draw_batch(len(state["images"]), *stream)
        self.place_batch(state, state["batch"])
        if new_period:
            self._refresh(state, *stream)
        self.job.teachers.load(state["teacher"], state["epoch"])
        gradient, figures = self.image_gradient(state, *stream)
        # images outside the batch have no gradient, but their momentum moves them on
        return Update(figures, {"images": Rows(state["batch"], gradient)})

    def _draw_batch(self, count: int, *stream: streams.Key) -> Tensor:
        if self.settings.batch is None:
            return torch.arange(count, device=self.job.compute.device)
        order = torch.randperm(count, generator=streams.generator(*stream, "batch"))
        return order[: self.settings.batch].sort().values.to(self.job.compute.device)

    def place_batch(self, state: State, batch: Tensor) -> None:
        """Copy the images of `batch` (B,), rows of `state["images"]`, to the device."""
        images = state["images"]
        self.examples.images.copy_(images[batch.to(images.device)])

    def _refresh(self, state: State, *stream: streams.Key) -> None:
        pool, compute, images = self.job.teachers, self.job.compute, self.examples.images
        random = streams.generator(*stream, "teacher")
        state["teacher"] = int(torch.randint(len(pool), (), generator=random))
        state["epoch"] = self._draw_epoch(random)
        teacher = pool.load(state["teacher"], state["epoch"])
        most = min(self.segment, LABELLED)
        self.examples.targets.copy_(logits(teacher, images, compute, batch=most))
        start = pool.spec.fresh(*stream, "student", 0)
        state["students"] = torch.stack(self.trainer.fit(start, *stream, 0, keep=self.keep))

    def _draw_epoch(self, random: torch.Generator) -> int | None:
        """The epoch after which the teacher of a period is taken; None: the last."""
        if self.teacher_epochs is None:
            return None
        first, last = self.teacher_epochs
        return int(torch.randint(first, last + 1, (), generator=random))

    def image_gradient(self, state: State, *stream: streams.Key) -> tuple[Tensor, dict[str, float]]:
        """The gradient (B, C, H, W) of Eq. 4 in the images of the batch, and its two terms.

        The batch must be placed and its teacher loaded; it is cut into nearly equal segments.
        """
        batch, device = state["batch"], self.job.compute.device
        size = len(batch)
        # drawn for the whole batch, so that the result does not depend on the segments
        drawn = augment.draw(self.strategy, size, streams.generator(*stream, "images"))
        gradients, sums = [], torch.zeros(2, device=device)
        for part in torch.arange(size, device=device).tensor_split(math.ceil(size / self.segment)):
            leaf = self.examples.images[part].requires_grad_()
            images = augment.augment(leaf, drawn and drawn.at(part).to(device))
            inputs = images.detach().requires_grad_()
            classes = state["classes"][batch[part]]
            gradient, terms = self.segment_gradient(inputs, classes, state["students"])
            gradients.append(torch.autograd.grad(images, leaf, gradient)[0] / size)
            sums += terms
        match, ce = (sums / size).tolist()
        return torch.cat(gradients), {"match": match, "ce": ce}

    def segment_gradient(
        self, images: Tensor, classes: Tensor, students: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The gradient (n, C, H, W) of the summed loss in the leaf `images`, and both terms (2,).

        `classes` is (n,) and `students` (K, P), the parameters of the checkpoints.

        The teacher's graph is built once: its logits collect the gradients of all checkpoints, then
        one backward pass carries them to the images.
        """
        predicted = self._predict(images)
        leaf = predicted.detach().requires_grad_()
        ce = F.cross_entropy(leaf, classes, reduction="sum")
        to_logits = torch.autograd.grad(self.settings.ce * ce, leaf)[0]
        to_images = torch.zeros_like(images)
        match = torch.zeros((), device=images.device)
        for student in students:
            self.critic.load(student)
            term = self._distance(images, leaf)
            by_images, by_logits = torch.autograd.grad(term, (images, leaf))
            to_images += by_images
            to_logits += by_logits
            match += term.detach()
        to_images += torch.autograd.grad(predicted, images, to_logits)[0]
        return to_images, torch.stack([match, ce.detach()])


def _prediction_of(net: FlatNet, compute: Compute):  # noqa: ANN202 - a closure
    def predict(images: Tensor) -> Tensor:
        with compute.autocast():
            return net.module(images).to(images.dtype)

    return predict


def _distance_of(net: FlatNet, compute: Compute, logarithm: bool):  # noqa: ANN202 - a closure
    """Minus the distance (mean over classes) of the logits of `net` from others, summed."""
    predict = _prediction_of(net, compute)

    def distance(images: Tensor, logits: Tensor) -> Tensor:
        distances = (predict(images) - logits).abs().mean(dim=1)
        return -(distances.clamp_min(SMALLEST_DISTANCE).log() if logarithm else distances).sum()

    return distance
