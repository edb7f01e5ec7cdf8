"""Back-propagation through training, with random truncation (BPTT).

Wang et al., "Dataset Distillation", arXiv:1811.10959, 2018, state the problem: images such that a
network trained on them does well on real ones; Feng, Vedantam & Kempe, "Embarrassingly Simple
Dataset Distillation", ICLR 2024 (RaT-BPTT), let the window of steps that is differentiated end at
a random point of a longer training. Here the window's gradient is exact in memory that does not
grow with its length (`methods/matching/trajectory.py`), and labels and learning rate are learned
with the images, each by Adam.

Deviations from the published method: the inner training is plain SGD with a learned rate (theirs
is Adam with a fixed one); the labels are logits under soft cross-entropy; one network a round.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad_and_value

from apm_core.methods.base import Job, Method, Shard, State, are_finite, require_batch, require_loss
from apm_core.methods.kernel import network_pool
from apm_core.methods.matching.experts import figures_of, inner_training
from apm_core.methods.matching.trajectory import End, Inner
from apm_core.runtime import streams
from apm_core.training.inference import forward_flops
from apm_core.training.losses.soft_ce import loss as soft_ce
from apm_core.training.optimizers import Moments, adam_
from apm_core.training.recipe import Recipe

START_LOGIT = 4.0  # of an image's own class, the others begin at 0


class BPTT(Method):
    """The method of one shard.

    Args:
        name: of the method in the config.
        recipe: its augmentation is that of the inner training; its loss is soft_ce.
        lr_images, lr_labels, lr_rate: of Adam for images, label logits, and the logarithm of the
            learning rate.
        rate: of the inner training at the start.
        before: at most so many steps come before the window, drawn anew in each round.
        window: steps that are differentiated.
        batch: images of an inner step; None: all of the shard.
        batch_real: real images that judge the trained network.
    """

    def __init__(
        self,
        *,
        name: str,
        recipe: Recipe,
        lr_images: float,
        lr_labels: float,
        lr_rate: float,
        rate: float,
        before: int,
        window: int,
        batch: int | None,
        batch_real: int,
    ) -> None:
        super().__init__(name=name)
        require_loss(self.key("recipe.loss"), recipe, "soft_ce", "learned labels")
        self.rates = {"images": lr_images, "targets": lr_labels, "log_rate": lr_rate}
        self.rate, self.before, self.batch_real = rate, before, batch_real
        self.window = window
        self.inner = Inner(before + window, batch, recipe.augment)

    def init(self, job: Job) -> State:
        """Real images with the labels of their classes, and the rate."""
        images, classes = job.real_images()
        require_batch(self.key("batch"), self.inner.batch, images)
        self.attach(job)
        return self.begin(images, classes)

    def begin(self, images: Tensor, classes: Tensor) -> State:
        """The state of images (N, C, H, W) of `classes` (N,) at rest, on the device."""
        images = images.to(self.job.compute.device)
        own = F.one_hot(classes, self.job.spec.shape.classes)
        state: State = {
            "images": images,
            "targets": START_LOGIT * own.to(images),
            "log_rate": torch.tensor(self.rate).log().to(images),
        }
        for name in self.rates:
            state |= network_pool.remembered(name, Moments.at_rest(state[name]))
        return state | {"classes": classes}

    def attach(self, job: Job) -> None:
        """Hold the real images, and compile what is done in every round."""
        self.job, compute, net = job, job.compute, job.spec.network(job.compute.device)
        self.training = inner_training(job, self.inner, soft_ce, learn_targets=True)
        self.real = job.data.examples("train", compute)

        def value(theta: Tensor, images: Tensor, classes: Tensor) -> Tensor:
            with compute.autocast():
                predicted = net.at(theta, images)
            return F.cross_entropy(predicted.to(theta), classes)

        def judge(theta: Tensor, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
            return grad_and_value(value)(theta, images, classes)

        flops = 3.0 * forward_flops(net, job.spec.shape.image, compute)
        flops *= job.rounds * self.batch_real
        self.judge = compute.compiled(judge, flops=flops, steps=job.rounds, fuses=net.fuses)

    def step(self, state: State, index: int) -> dict[str, float]:
        """Train a fresh network, judge it, and move all that it was trained with."""
        stream, images = (*self.job.stream, index), state["images"]
        steps = self.inner.draw(len(images), images.device, *stream)
        random = streams.generator(*stream, "window")
        first = int(torch.randint(self.before + 1, (), generator=random))
        given = (images, state["targets"], state["log_rate"].exp())
        start = self.job.spec.fresh(*stream, "network").to(images)
        start = self.training.train(start, steps[:first], *given)[-1]
        window = steps[first : first + self.window]
        found = self.training.differentiate(start, self._end(*stream), window, *given)
        figures = {**figures_of(found), "lr_images": self.rates["images"]}
        if are_finite(figures):
            by_log_rate = found.rate * state["log_rate"].exp()
            gradients = (found.images, found.targets, by_log_rate)
            for name, gradient in zip(self.rates, gradients, strict=True):
                moved, memory = state[name].clone(), network_pool.moments(state, name)
                adam_(moved, gradient, memory, self.rates[name])
                state |= {name: moved, **network_pool.remembered(name, memory)}
        return {**figures, "rate": float(state["log_rate"].exp())}

    def finish(self, state: State) -> Shard:
        """The images with their label logits and the learned rate."""
        shard = super().finish(state)
        rate = float(state["log_rate"].exp())
        return Shard(shard.images, shard.classes, state["targets"].cpu(), rate)

    def _end(self, *stream: streams.Key) -> End:
        """Cross-entropy of given parameters (P,) on real images, and its gradient."""
        real = self.real.some(self.batch_real, *stream, "real")

        def end(theta: Tensor) -> tuple[Tensor, Tensor]:
            gradient, loss = self.judge(theta, real.images, real.targets)
            return loss, gradient

        return end
