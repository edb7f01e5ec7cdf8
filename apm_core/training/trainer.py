"""The training loop. Teachers, students, evaluation and architecture search all go through
`Trainer.fit`.

The examples live on the device and are indexed by permutations; all random numbers of a pass are
drawn at once and moved in one copy; nothing in a step waits for the device. On a GPU a step is a
CUDA graph, one for each batch size.
"""

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from apm_core.data.examples import Examples
from apm_core.errors import DivergenceError
from apm_core.nets.flat import FlatNet
from apm_core.runtime import streams
from apm_core.runtime.device import Compute, Graphs, lanes
from apm_core.runtime.resume import Part, SavedState
from apm_core.runtime.run import Progress, silent
from apm_core.training import augment
from apm_core.training.cutmix import NUMBERS, cutmix
from apm_core.training.inference import forward_flops
from apm_core.training.losses import loss_of
from apm_core.training.optimizers import Moments, adam_
from apm_core.training.recipe import Recipe

SMALLEST_NORM = 1e-12
Labeller = Callable[[Tensor], Tensor]  # images (N, C, H, W) to their targets
Among = Callable[[int], Tensor | None]  # examples (n,) int64 of a pass by its index; None: all


def everything(_: int) -> None:
    """All examples, in every pass."""


class Rows:
    """The batches of one size in one pass: which examples, under which random numbers.

    Filled in one copy a pass; on the device, `position` counts the steps, so that a replayed step
    finds its own batch.
    """

    def __init__(
        self, size: int, steps: int, strategy: str, device: torch.device, *, mixed: bool = False
    ) -> None:
        self.size, self.steps, self.strategy = size, steps, strategy
        self.names = augment.groups(strategy)
        self.order = torch.zeros(steps, size, dtype=torch.int64, device=device)
        self.group = torch.zeros(steps, dtype=torch.int64, device=device)
        self.uniform = torch.zeros(steps, augment.NUMBERS, size, device=device)
        self.mix = torch.zeros(steps, NUMBERS, device=device) if mixed else None
        self.position = torch.zeros(1, dtype=torch.int64, device=device)

    def fill(self, order: Tensor, random: torch.Generator) -> list[str | None]:
        """Take the batches of a pass, examples (n * size,) for n <= steps, and draw an augmentation
        for each step, and how it is mixed; returns the augmentation's group by step.
        """
        n = len(order) // self.size
        if not n:
            return []
        _upload(order.view(n, self.size), self.order[:n])
        self.position.zero_()
        draws = [augment.draw(self.strategy, self.size, random) for _ in range(n)]
        if self.mix is not None:
            _upload(torch.rand(n, NUMBERS, generator=random), self.mix[:n])
        if not self.names:
            return [None] * n
        _upload(torch.stack([drawn.uniform for drawn in draws]), self.uniform[:n])
        _upload(torch.tensor([self.names.index(drawn.group) for drawn in draws]), self.group[:n])
        return [drawn.group for drawn in draws]

    def next(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Examples (size,), number of the augmentation's group (0-d), its numbers (3, size), and
        those of CutMix (3,) or None, of the step whose turn it is.
        """
        columns = (self.order, self.group, self.uniform, self.mix)
        turn = [None if of is None else of.index_select(0, self.position)[0] for of in columns]
        self.position.add_(1).remainder_(self.steps)
        return tuple(turn)


def _upload(values: Tensor, to: Tensor) -> None:
    """Copy `values` from host memory; pinned for a GPU, so that nothing waits for the copy."""
    to.copy_(values.pin_memory() if to.is_cuda else values, non_blocking=True)


def _descent(
    recipe: Recipe, net: FlatNet, velocity: Tensor, moments: Moments | None, rate: Tensor
) -> Callable[[Tensor], None]:
    """A function that moves the parameters w of `net` along their gradient g, in place.

    v <- m v + (g + decay w); w <- w - rate v, or rate (g + decay w + m v) with Nesterov; or a step
    of Adam along g + decay w; or w <- w - rate decay w in matrices, and a step of Adam along g
    (AdamW: Loshchilov & Hutter, ICLR 2019).
    """
    vector = net.vector
    beside = None
    if recipe.optimizer == "adamw":
        beside = net.matrices.to(vector.dtype) * recipe.weight_decay

    def descend(gradient: Tensor) -> None:
        if beside is None:
            gradient = gradient.add(vector, alpha=recipe.weight_decay)
        else:
            vector.addcmul_(vector * beside, rate, value=-1)
        if moments:
            adam_(vector, gradient, moments, rate, beta1=recipe.momentum)
            return
        velocity.mul_(recipe.momentum).add_(gradient)
        step = velocity
        if recipe.nesterov:
            step = gradient.add_(velocity, alpha=recipe.momentum)
        vector.addcmul_(step, rate, value=-1)

    return descend


class Trainer:
    """Trains networks of one architecture on one set of examples, one after another, in the same
    memory.

    With a radius `rho`, steps look for flat minima by the surrogate gap (Zhuang et al., "Surrogate
    Gap Minimization Improves Sharpness-Aware Training", ICLR 2022), with the perturbation that does
    not depend on the scale of the weights (Kwon et al., "ASAM", ICML 2021); see `_flat_gradient`.

    Everything that a step reads or writes stays at its place (the parameters are copied in and out,
    the random numbers of a pass are copied into buffers), so what is compiled, or captured as a
    CUDA graph, for the first network serves them all.

    Args:
        net: the memory; its contents are overwritten.
        recipe: how to train.
        examples: the training set. Its tensors may be overwritten between two networks.
        networks: how many will be trained; it tells how long the work will be, and so whether
            compiling it pays.
        label: gives the targets of each batch, from its images as the network sees them; None: the
            targets are those of the examples.
    """

    def __init__(
        self,
        net: FlatNet,
        recipe: Recipe,
        compute: Compute,
        examples: Examples,
        *,
        networks: int,
        label: Labeller | None = None,
    ) -> None:
        self.net, self.recipe, self.compute, self.examples = net, recipe, compute, examples
        device, count = compute.device, len(examples.targets)
        self.draws = net.draws
        self.velocity = torch.zeros_like(net.vector)
        self.moments = Moments.at_rest(net.vector) if recipe.optimizer != "sgd" else None
        self.rate = torch.zeros((), device=device, dtype=net.vector.dtype)
        self.loss_sum = torch.zeros((), device=device, dtype=net.vector.dtype)
        whole, rest = divmod(count, recipe.batch)
        self.rows = [
            Rows(size, steps, recipe.augment, device, mixed=recipe.cutmix)
            for size, steps in ((recipe.batch, whole), (rest, 1))
            if size * steps
        ]
        self._graphs = Graphs() if compute.graphs else None
        loss = loss_of(recipe.loss)

        def forward(images: Tensor, targets: Tensor) -> Tensor:
            with compute.autocast():
                logits = net.module(images)
            logits = logits.float() if compute.precision == "bf16" else logits
            if recipe.temperature != 1:
                logits, targets = logits / recipe.temperature, targets / recipe.temperature
            return loss(logits, targets)

        image = examples.images[torch.zeros(1, dtype=torch.int64, device=device)].shape[1:]
        passes = networks * recipe.passes * (2 if recipe.rho else 1)
        work = {
            "flops": 3.0 * forward_flops(net, image, compute) * passes * count,
            "steps": passes * math.ceil(count / recipe.batch),
            "compile_from_s": net.compile_from_s,
        }
        net.use_kernels(compute.wants_kernels(**work), compute.report)
        self._forward = compute.compiled(forward, **work)
        self._label = compute.compiled(label, **work) if label else None
        self._descend = _descent(recipe, net, self.velocity, self.moments, self.rate)
        if compute.graphs:  # small operations, each a node of the graph; on a CPU they cost nothing
            self._augmented = compute.compiled(augment.augment_by_number, **work)
            if not self.moments:  # torch 2.11 loses the count of Adam's steps in compiled code
                self._descend = compute.compiled(self._descend, **work)

    def fit(
        self,
        start: Tensor,
        *stream: streams.Key,
        lr: float | None = None,
        keep: Collection[int] = (),
        among: Among = everything,
        progress: Progress = silent,
        part: Part | None = None,
    ) -> list[Tensor]:
        """Train from `start` (P,); returns the parameters after each pass index in `keep`, in
        order.

        A pass over some of the examples, by `among`, has as many batches of the sizes of a pass
        over all as fit, and leaves out the rest of them.

        Afterwards `self.net` holds the trained network. `stream` names the random order and
        augmentation; `lr` takes the place of the recipe's. With `part`, an unfinished training is
        saved between two passes and continued, with the same bits.
        Raises DivergenceError with pass, loss and learning rate when the loss stops being finite.
        """
        training = Training(start, stream)
        [snapshots] = fit_together(
            [self], [training], lr=lr, keep=keep, among=among, progress=progress, part=part
        )
        return snapshots

    def begin(self, start: Tensor) -> None:
        """Take the parameters `start` (P,), and forget the training before."""
        self.net.load(start)
        self.net.module.train()
        self._rest()

    def one_pass(
        self, index: int, recipe: Recipe, among: Tensor | None, *stream: streams.Key
    ) -> Tensor:
        """Pass `index` over the examples, or over those `among`, at the rate of `recipe`; returns
        the mean loss of its batches, 0-d, on the device.
        """
        if recipe.drop_momentum and recipe.schedule == "step" and index == recipe.drop:
            self._rest()
        self.rate.fill_(recipe.rate(index))
        # half a millisecond, which short passes would feel
        noise = streams.seeded(*stream, index, "dropout") if self.draws else nullcontext()
        with noise:
            return self._steps(among, *stream, index)

    def unfinished(self) -> SavedState:
        """All that the passes after this one depend on, in host memory."""
        return {"carried": [tensor.detach().cpu() for tensor in self._carried()]}

    def restore(self, saved: SavedState) -> None:
        """Put back what `unfinished` gave."""
        for tensor, value in zip(self._carried(), saved["carried"], strict=True):
            tensor.copy_(value)

    def _carried(self) -> list[Tensor]:
        """The tensors that one step leaves to the next: parameters, running statistics, moments."""
        tensors = [self.net.vector, self.velocity, *self.net.module.buffers()]
        if self.moments:
            tensors += [self.moments.first, self.moments.second, self.moments.count]
        return tensors

    def rehearse(self, clock: Callable[[], float]) -> float:
        """Do a step of each batch size; returns the seconds by `clock` that a network will take.

        The parameters in memory are changed.
        """
        groups = augment.groups(self.recipe.augment) or (None,)
        self.net.module.train()
        seconds = 0.0
        for rows in self.rows:
            started = clock()
            self._play(rows, groups[0])
            seconds += (clock() - started) * rows.steps
        self.net.module.eval()
        return seconds * self.recipe.passes

    def _steps(self, among: Tensor | None, *stream: streams.Key) -> Tensor:
        """One pass over the examples, or over those `among`; returns the mean loss of its batches,
        0-d, on the device.
        """
        random = streams.generator(*stream)
        count = len(self.examples.targets if among is None else among)
        order = torch.randperm(count, generator=random)
        order = order if among is None else among[order]
        self.loss_sum.zero_()
        at = steps = 0
        for rows in self.rows:
            n = min(rows.steps, (count - at) // rows.size)
            for group in rows.fill(order[at : at + n * rows.size], random):
                self._play(rows, group)
            at, steps = at + n * rows.size, steps + n
        return self.loss_sum / steps

    def _play(self, rows: Rows, group: str | None) -> None:
        """One step, augmented by `group`: replayed on a GPU, done on a CPU."""
        if not self._graphs:
            return self._step(rows, group)
        state = [*self._carried(), self.loss_sum, rows.position]
        return self._graphs.play(rows.size, lambda: self._step(rows, group), state)

    def _step(self, rows: Rows, group: str | None) -> None:
        """Forward, backward and SGD on the batch whose turn it is; reads and writes nothing outside
        the device.

        On a GPU the group's number is read there too: one graph serves all groups.
        """
        index, number, uniform, mix = rows.next()
        images, targets = self.examples.images[index], self.examples.targets[index]
        if self._graphs:
            images = self._augmented(images, rows.names, number, uniform)
        elif group:
            images = augment.augment(images, augment.Draw(group, uniform))
        if mix is not None:
            images = cutmix(images, mix)
        if self._label:
            targets = self._label(images)
        loss = self._forward(images, targets)
        gradient = self.net.gradient(loss)
        self.loss_sum += loss.detach()
        if self.recipe.rho:
            gradient = self._flat_gradient(images, targets, gradient)
        self._descend(gradient)

    def _flat_gradient(self, images: Tensor, targets: Tensor, plain: Tensor) -> Tensor:
        """The gradient (P,) of GSAM, from the plain one, g.

        e = rho w^2 g / | |w| g |, h the gradient at w + e on the same images, and the result is
        h - alpha (g - (g.h / |h|^2) h). Running statistics are those of the pass at w.
        """
        net, recipe = self.net, self.recipe
        start = net.snapshot()
        statistics = [buffer.clone() for buffer in net.module.buffers()]
        scale = recipe.rho / ((start.abs() * plain).norm() + SMALLEST_NORM)
        net.vector.addcmul_(start.square() * plain, scale)
        flat = net.gradient(self._forward(images, targets))
        net.vector.copy_(start)
        for buffer, before in zip(net.module.buffers(), statistics, strict=True):
            buffer.copy_(before)
        norm, flat_norm = plain.norm(), flat.norm()
        cosine = plain @ flat / (norm * flat_norm + SMALLEST_NORM)
        across = plain - cosine * norm / (flat_norm + SMALLEST_NORM) * flat
        return flat.sub_(across, alpha=recipe.alpha)

    def _rest(self) -> None:
        """Forget what the optimizer remembers."""
        self.velocity.zero_()
        if self.moments:
            self.moments.reset()


@dataclass(frozen=True)
class Training:
    """Where a training starts, (P,), and the name of its random streams."""

    start: Tensor
    stream: tuple[streams.Key, ...]


def fit_together(
    trainers: Sequence[Trainer],
    trainings: Sequence[Training],
    *,
    lr: float | None = None,
    keep: Collection[int] = (),
    among: Among = everything,
    progress: Progress = silent,
    part: Part | None = None,
) -> list[list[Tensor]]:
    """`Trainer.fit` of several trainings, each with a trainer of its own, of equal recipes: a pass
    of each in turn, and on a GPU side by side. The results are those of one after the other.

    `part` keeps all of them.
    """
    recipe = trainers[0].recipe if lr is None else replace(trainers[0].recipe, lr=lr)
    snapshots: list[list[Tensor]] = [[] for _ in trainers]
    first = 0
    alone = any(trainer.draws for trainer in trainers)  # captured steps share one generator
    with lanes(trainers[0].compute.device, len(trainers), one_by_one=alone) as found:
        members = list(zip(trainers, trainings, found, snapshots, strict=True))
        for trainer, training, lane, _ in members:
            with lane:
                trainer.begin(training.start)
        if part and part.state:
            first = part.state["done"]
            for (trainer, _, lane, kept), saved in zip(members, part.state["each"], strict=True):
                with lane:
                    trainer.restore(saved)
                    kept += [vector.to(trainer.compute.device) for vector in saved["snapshots"]]
        for index in range(first, recipe.passes):
            losses, examples = [], among(index)
            for trainer, training, lane, kept in members:
                with lane:
                    losses.append(trainer.one_pass(index, recipe, examples, *training.stream))
                    if index in keep:
                        kept.append(trainer.net.snapshot())
            last = index + 1 == recipe.passes
            if last or progress is not silent or index % 50 == 0:
                values = []
                for (_, _, lane, _), loss in zip(members, losses, strict=True):
                    with lane:  # waits for its stream alone
                        values.append(float(loss))
                _require_finite(values, recipe, index)
                progress(index + 1, recipe.passes, {"loss": sum(values) / len(values)})
            if part and not last and part.due():
                each = []
                for trainer, _, lane, kept in members:
                    with lane:
                        each.append(trainer.unfinished() | {"snapshots": [v.cpu() for v in kept]})
                part.save({"done": index + 1, "each": each})
    for trainer in trainers:
        trainer.net.module.eval()
    return snapshots


def _require_finite(losses: Sequence[float], recipe: Recipe, index: int) -> None:
    for loss in losses:
        if not math.isfinite(loss):
            raise DivergenceError(
                f"training: {recipe.loss} loss is {loss} in pass {index} of {recipe.passes} at"
                f" learning rate {recipe.rate(index):g}: lower the learning rate"
            )
