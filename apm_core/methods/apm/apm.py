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

Beyond the paper, all off by default and what `apm_plus` is made of. What each does to the accuracy
on held-out images of CIFAR-10 at 1, 10 and 50 images per class, in points beside one base, is in
`benchmarks/results/ablation_cpu.json` and in the README:
- Teachers of early epochs (`teacher_epochs`): +6, +4 and +2 over fully trained ones;
  their mean for labels (the pool's `labels`), +1, +4 and +5; images that move further, 0, +3, +4.
- One image per class has to be typical: a weight of 10 for the cross-entropy, +9, augmentation in
  the image loss, +2, and last rounds that unroll training (`unrolled`, see `bptt.py`), +4.
- A start from recognised images (`start`): +2, +1 and +0.5.
- The logarithm: +2, -2, 0. A cross-entropy of 1, the average, several students, a range of epochs
  that expands, learned labels and rate: within a point, as is the spread between sets.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from apm_core.data.examples import Examples
from apm_core.errors import ConfigError
from apm_core.methods.apm.polish import polished
from apm_core.methods.base import Job, Method, Shard, State, require_batch, require_embedding
from apm_core.methods.bptt import BPTT
from apm_core.methods.shared.recognised import correct_shard
from apm_core.nets.flat import FlatNet
from apm_core.runtime import streams
from apm_core.runtime.device import Compute
from apm_core.training import augment
from apm_core.training.inference import forward_flops, logits
from apm_core.training.recipe import Recipe
from apm_core.training.trainer import Trainer

STARTS = ("real", "correct")
SMALLEST_DISTANCE = 1e-8  # keeps the logarithm of a perfect match finite


class APM(Method):
    """The method of one shard.

    Memory: the activations of one segment through the teacher and one checkpoint, or of one batch
    of a student's training, whichever is more; neither grows with the shard, K or the batch.

    Args:
        recipe: how a student is trained on the distilled images; its loss is L1 on logits.
        lr_images: step of the images; tied to 1/batch and, without logarithm, to 1/classes.
        momentum_images: of the image steps.
        checkpoints: K; of a student with epoch indices 0..E, those after E/K, 2E/K, ..., E are
            kept.
        period: rounds that share a teacher and its students (the paper's mid_gap + 1).
        students: trained anew in each period, all with the same teacher.
        batch: images per round; None: all of the shard.
        ce: weight of the teacher's cross-entropy.
        logarithm, keep_batch, augment_images: see above.
        start: images drawn at random ("real"), or such that teachers, as they were after the last
            of `teacher_epochs`, classify correctly ("correct").
        learn_labels, learn_rate: fit the labels, and find the learning rate, when the images are
            done (`polish.py`); else labels and rate are those of all methods.
        unrolled: the settings of `bptt`, and how many `rounds` at the end are rounds of it: they
            start from the images and their classes, and learn images, labels and rate. None, or 0
            rounds: all rounds match predictions.
        teacher_epochs: the first and the last epoch after which a teacher is taken from its
            training; None: teachers are fully trained.
        expanding: begin with the first of these epochs alone and reach the last at half of the
            rounds, as DATM does.
        ema: decay of the average of the images over the rounds, which is then the product; 0: the
            images themselves.
    """

    at_home = frozenset({"images", "velocity", "average"})

    def __init__(
        self,
        *,
        name: str,
        recipe: Recipe,
        lr_images: float,
        momentum_images: float,
        checkpoints: int,
        period: int,
        batch: int | None,
        ce: float,
        logarithm: bool,
        keep_batch: bool,
        augment_images: bool,
        students: int = 1,
        teacher_epochs: Sequence[int] | None = None,
        expanding: bool = False,
        ema: float = 0.0,
        start: str = "real",
        learn_labels: bool = False,
        learn_rate: bool = False,
        unrolled: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(name=name)
        if start not in STARTS:
            raise ConfigError(f"{self.key('start')}: {start!r} is neither real nor correct")
        last = recipe.passes - 1  # E
        if last % checkpoints:
            raise ConfigError(
                f"{self.key('checkpoints')}: {checkpoints} does not divide recipe.epochs: {last}"
            )
        self.recipe = replace(recipe, loss="l1")
        self.lr_images, self.momentum_images = lr_images, momentum_images
        self.keep = frozenset(range(last // checkpoints, last + 1, last // checkpoints))
        self.period, self.students, self.batch, self.ce = period, students, batch, ce
        self.logarithm, self.keep_batch = logarithm, keep_batch
        self.strategy = recipe.augment if augment_images else "none"
        self.epochs, self.expanding, self.ema = teacher_epochs, expanding, ema
        self.start, self.learn_labels, self.learn_rate = start, learn_labels, learn_rate
        given = {"rounds": 0, **(unrolled or {})}
        if given["rounds"] and (learn_labels or learn_rate):
            raise ConfigError(
                f"{self.key('unrolled.rounds')}: these rounds learn labels and rate: switch off"
                " learn_labels and learn_rate"
            )
        self.unrolled_rounds = given.pop("rounds")
        self.unrolled = (
            BPTT(name=name, recipe=recipe, batch=batch, **given) if self.unrolled_rounds else None
        )

    def init(self, job: Job) -> State:
        """Real images at rest; the student and the batch of the period are drawn in round 0."""
        images, classes = (
            self._correct_images(job) if self.start == "correct" else job.real_images()
        )
        require_batch(self.key("batch"), self.batch, images)
        self.attach(job)
        state = {"images": images, "classes": classes, "velocity": torch.zeros_like(images)}
        return state | ({"average": images.clone()} if self.ema else {})

    def _correct_images(self, job: Job) -> tuple[Tensor, Tensor]:
        pool, compute = job.teachers, job.compute
        vectors = pool.after(self._last_epoch)
        images, classes = correct_shard(
            job.data, pool.net, vectors, compute.exact(), job.ipc, job.shard
        )
        return images.to(job.home or compute.device), classes.to(compute.device)

    def attach(self, job: Job) -> None:
        """Build the networks and compile what they do."""
        self.job, pool, compute = job, job.teachers, job.compute
        self.matching = job.rounds - self.unrolled_rounds  # the last such round
        if self.unrolled:
            if job.rounds and self.matching < 0:
                raise ConfigError(
                    f"{self.key('unrolled.rounds')}: {self.unrolled_rounds} is more than all"
                    f" rounds: {job.rounds}"
                )
            self.unrolled.attach(replace(job, rounds=self.unrolled_rounds))
        if self.learn_labels:
            require_embedding(self.key("learn_labels"), pool.spec, pool.net.module)
        if self.epochs:
            pool.require_epochs(self.epochs, self.key("teacher_epochs"))
        shape, device = pool.spec.shape, compute.device
        count = self.batch or job.ipc * shape.classes
        self.segment = min(job.segment or count, count)
        student = pool.spec.memory(device)
        networks = self.students * (job.rounds // self.period + 1)
        dtype = student.vector.dtype
        self.examples = Examples(
            torch.zeros(count, *shape.image, device=device, dtype=dtype),
            torch.zeros(count, shape.classes, device=device, dtype=dtype),
        )
        self.trainer = Trainer(student, self.recipe, compute, self.examples, networks=networks)
        self.critic = pool.spec.memory(device)  # holds one checkpoint of the student
        self.critic.module.eval().requires_grad_(False)
        images = (job.rounds + 1) * count
        pairs = self.students * len(self.keep)
        work = {
            "flops": 3.0 * forward_flops(self.critic, shape.image, compute) * images * pairs,
            "steps": (job.rounds + 1) * pairs * math.ceil(count / self.segment),
            "fuses": self.critic.fuses,
        }
        self._distance = compute.compiled(
            _distance_of(self.critic, compute, self.logarithm), **work
        )
        self._predict = compute.compiled(_prediction_of(pool.net, compute), **work)

    def rehearse(self, state: State, clock: Callable[[], float]) -> tuple[int, float]:
        """One step of a student, and one checkpoint against the teacher on one segment."""
        batch = self._draw_batch(len(state["images"]), *self.job.stream, 0)
        self._place(state, batch)
        self.job.teachers.load(0)
        per_student = self.trainer.rehearse(clock)
        started = clock()
        part = slice(0, self.segment)
        classes = state["classes"][batch[part]]
        leaf = self.examples.images[part].clone().requires_grad_()
        self._segment_gradient(leaf, classes, self.trainer.net.snapshot()[None])
        pair = clock() - started  # two networks of the K + 1
        pairs = (self.students * len(self.keep) + 1) / 2 * math.ceil(len(batch) / self.segment)
        seconds = self.students * per_student / self.period + pair * pairs
        if self.unrolled:
            share = self.unrolled_rounds / (self.job.rounds + 1)
            _, other = self.unrolled.rehearse(self._handed_over(state), clock)
            seconds += share * (other - seconds)
        return len(batch), seconds

    def step(self, state: State, index: int) -> dict[str, float]:
        """One round: refresh teacher and student if the period is over, then move the images."""
        if index > self.matching:
            return self._unrolled_step(state, index)
        stream = (*self.job.stream, index)
        new_period = index % self.period == 0
        if new_period or not self.keep_batch:
            state["batch"] = self._draw_batch(len(state["images"]), *stream)
        self._place(state, state["batch"])
        if new_period:
            self._refresh(state, index, *stream)
        self.job.teachers.load(state["teacher"], state["epoch"])
        gradient, figures = self._image_gradient(state, *stream)
        rate = self.lr_images * (0.3 if index >= self.matching // 2 else 1.0)
        # images outside the batch have no gradient, but their momentum moves them on
        images, velocity = state["images"], state["velocity"]
        velocity *= self.momentum_images
        velocity[state["batch"].to(velocity.device)] += gradient.to(velocity.device)
        images.sub_(velocity, alpha=rate)
        if self.ema:
            state["average"].lerp_(images, 1 - self.ema)
        return {**figures, "lr_images": rate}

    def _unrolled_step(self, state: State, index: int) -> dict[str, float]:
        """One round of `bptt`; the first takes over the images, or their average."""
        if index == self.matching + 1:
            ours = self._handed_over(state)
        else:
            ours = {**state, "images": state["images"].to(self.job.compute.device)}
        figures = self.unrolled.step(ours, index)
        state |= ours
        return figures

    def _handed_over(self, state: State) -> State:
        """The state of `bptt` where the matching ends."""
        return self.unrolled.begin(state.get("average", state["images"]), state["classes"])

    @property
    def _last_epoch(self) -> int | None:
        """The epoch of the teachers that label the images; None: their end."""
        return self.epochs[-1] if self.epochs else None

    def finish(self, state: State) -> Shard:
        """The images, or their average, with what is learned about them."""
        if "targets" in state:
            return self.unrolled.finish(state)
        shard = super().finish({**state, "images": state.get("average", state["images"])})
        if not (self.learn_labels or self.learn_rate):
            return shard
        labels, rate = self.learn_labels, self.learn_rate
        return polished(shard, self.job, self.recipe, self._last_epoch, labels=labels, rate=rate)

    def _draw_batch(self, count: int, *stream: streams.Key) -> Tensor:
        if self.batch is None:
            return torch.arange(count, device=self.job.compute.device)
        order = torch.randperm(count, generator=streams.generator(*stream, "batch"))
        return order[: self.batch].sort().values.to(self.job.compute.device)

    def _place(self, state: State, batch: Tensor) -> None:
        """Bring the images of the batch to the device."""
        images = state["images"]
        self.examples.images.copy_(images[batch.to(images.device)])

    def _refresh(self, state: State, index: int, *stream: streams.Key) -> None:
        pool, compute, images = self.job.teachers, self.job.compute, self.examples.images
        random = streams.generator(*stream, "teacher")
        state["teacher"] = int(torch.randint(len(pool), (), generator=random))
        state["epoch"] = self._draw_epoch(index, random)
        teacher = pool.load(state["teacher"], state["epoch"])
        self.examples.targets.copy_(logits(teacher, images, compute, batch=self.segment))
        kept = []
        for number in range(self.students):
            start = pool.spec.fresh(*stream, "student", number)
            kept += self.trainer.fit(start, *stream, number, keep=self.keep)
        state["students"] = torch.stack(kept)

    def _draw_epoch(self, index: int, random: torch.Generator) -> int | None:
        """The epoch after which the teacher of round `index` is taken; None: the last."""
        if self.epochs is None:
            return None
        first, last = self.epochs
        if self.expanding:
            last = first + (last - first) * min(1.0, 2 * index / max(1, self.job.rounds))
        return int(torch.randint(first, int(last) + 1, (), generator=random))

    def _image_gradient(
        self, state: State, *stream: streams.Key
    ) -> tuple[Tensor, dict[str, float]]:
        """Gradient (B, C, H, W) of Eq. 4 in the batch, over even segments and checkpoints."""
        batch, device = state["batch"], self.job.compute.device
        size = len(batch)
        # drawn for the whole batch, so that the result does not depend on the segments
        drawn = augment.draw(self.strategy, size, streams.generator(*stream, "images"))
        gradients, sums = [], torch.zeros(2, device=device)
        for part in torch.arange(size, device=device).tensor_split(math.ceil(size / self.segment)):
            leaf = self.examples.images[part].requires_grad_()
            images = augment.augment(leaf, drawn and drawn.at(part).to(device))
            seen = images.detach().requires_grad_()
            classes = state["classes"][batch[part]]
            gradient, terms = self._segment_gradient(seen, classes, state["students"])
            gradients.append(torch.autograd.grad(images, leaf, gradient)[0] / size)
            sums += terms
        match, ce = (sums / size).tolist()
        return torch.cat(gradients), {"match": match, "ce": ce}

    def _segment_gradient(
        self, images: Tensor, classes: Tensor, students: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradient of the summed loss in `images` (a leaf), and the two summed terms.

        The teacher's graph is built once: its logits collect the gradients of all checkpoints, then
        one backward pass carries them to the images.
        """
        predicted = self._predict(images)
        leaf = predicted.detach().requires_grad_()
        ce = F.cross_entropy(leaf, classes, reduction="sum")
        to_logits = torch.autograd.grad(self.ce * ce, leaf)[0]
        to_images = torch.zeros_like(images)
        match = torch.zeros((), device=images.device)
        for student in students:
            self.critic.load(student)
            term = self._distance(images, leaf) / self.students
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
    """Minus the distance (mean over classes) of `net` from given logits, summed over images."""
    predict = _prediction_of(net, compute)

    def distance(images: Tensor, logits: Tensor) -> Tensor:
        apart = (predict(images) - logits).abs().mean(dim=1)
        return -(apart.clamp_min(SMALLEST_DISTANCE).log() if logarithm else apart).sum()

    return distance
