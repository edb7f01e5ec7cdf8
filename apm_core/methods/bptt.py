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

from collections import deque

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad_and_value

from apm_core.data.examples import Examples
from apm_core.methods.base import Job, Method, Shard, Update, require_batch
from apm_core.methods.matching.experts import figures_of, inner_training
from apm_core.methods.matching.trajectory import End, InnerTraining, Match, Step
from apm_core.methods.movers import Adam, State
from apm_core.methods.passes import TRAINED, Extent, Passes
from apm_core.runtime import streams
from apm_core.settings.methods.bptt import BPTTSettings
from apm_core.training.inference import forward_flops
from apm_core.training.losses.soft_ce import loss as soft_ce
from apm_core.training.recipe import Recipe

START_LOGIT = 4.0  # of an image's own class, the others begin at 0


class BPTT(Method):
    """Moves images, labels and learning rate along the gradient through a training on them.

    The recipe's augmentation is that of the inner training; its loss is soft_ce.
    """

    def __init__(self, settings: BPTTSettings, *, name: str, recipe: Recipe) -> None:
        super().__init__(settings, name=name, recipe=recipe)
        self.inner = InnerTraining(
            settings.before + settings.window, settings.batch, recipe.augment
        )
        self.movers = {
            "images": Adam(settings.lr_images),
            "targets": Adam(settings.lr_labels),
            "log_rate": Adam(settings.lr_rate),
        }

    def passes(self, extent: Extent) -> Passes:
        """A training up to the end of its window, half of `before` in the mean, and the loss on
        real images there.
        """
        own = self.settings
        training = self.inner.passes(extent.images, own.before / 2, own.window)
        return training + Passes(TRAINED * own.batch_real, 1)

    def init(self, job: Job) -> State:
        """Start from real images, label logits of their classes and `settings.rate`.

        Raises ConfigError for a batch larger than the shard.
        """
        images, classes = job.real_images()
        require_batch(self.key("batch"), self.settings.batch, images)
        self.attach(job)
        return self.state_of(images, classes)

    def state_of(self, images: Tensor, classes: Tensor) -> State:
        """The state of images (N, C, H, W) of `classes` (N,), on the device."""
        images = images.to(self.job.compute.device)
        own = F.one_hot(classes, self.job.spec.shape.classes)
        return {
            "images": images,
            "targets": START_LOGIT * own.to(images),
            "log_rate": torch.tensor(self.settings.rate).log().to(images),
            "classes": classes,
        }

    def attach(self, job: Job) -> None:
        """Load the real images, and compile the inner training and the loss on real images."""
        self.job, compute, net = job, job.compute, job.spec.network(job.compute.device)
        self.net = net
        net.module.eval()  # dropout would draw from no stream of the job
        self.training = inner_training(job, self.inner, soft_ce, learn_targets=True)
        self.real = job.data.examples("train", compute)

        def value(theta: Tensor, images: Tensor, classes: Tensor) -> Tensor:
            with compute.autocast():
                predicted = net.at(theta, images)
            return F.cross_entropy(predicted.to(theta), classes)

        def judge(theta: Tensor, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
            return grad_and_value(value)(theta, images, classes)

        flops = 3.0 * forward_flops(net, job.spec.shape.image, compute)
        flops *= job.rounds * self.settings.batch_real
        work = {"steps": job.rounds, "compile_from_s": net.compile_from_s}
        self.judge = compute.compiled(judge, flops=flops, **work)

    def step(self, state: State, index: int) -> Update:
        """Train a fresh network, and differentiate its loss on real images through a window of the
        steps that ends at random.
        """
        random = streams.generator(*self.job.stream, index, "window")
        first = int(torch.randint(self.settings.before + 1, (), generator=random))
        return self.update(state, self.match(state, index, first, self.settings.window))

    def match(self, state: State, index: int, first: int, window: int) -> Match:
        """The loss on real images of the fresh network of round `index` after `first + window`
        steps, differentiated through the last `window`.
        """
        steps = self.steps(state, index)
        course = self.training.course(self.fresh(state, index), steps[:first], *learned(state))
        start = deque(course, maxlen=1).pop()  # the others are forgotten
        last = steps[first : first + window]
        return self.training.differentiate(start, self._end(index), last, *learned(state))

    def steps(self, state: State, *stream: streams.Key) -> list[Step]:
        """All steps of the training of round `stream`."""
        images = state["images"]
        return self.inner.draw(len(images), images.device, *self.job.stream, *stream)

    def fresh(self, state: State, *stream: streams.Key) -> Tensor:
        """The initial parameters (P,) of the network of round `stream`."""
        return self.job.spec.fresh(*self.job.stream, *stream, "network").to(state["images"])

    def update(self, state: State, match: Match) -> Update:
        """The figures of a round, and the gradients of what is learned."""
        rate = state["log_rate"].exp()
        gradients = {
            "images": match.images,
            "targets": match.targets,
            "log_rate": match.rate * rate,
        }
        return Update({**figures_of(match), "rate": float(rate)}, gradients)

    def finish(self, state: State) -> Shard:
        """The images with their label logits and the learned rate."""
        shard = super().finish(state)
        rate = float(state["log_rate"].exp())
        return Shard(shard.images, shard.classes, state["targets"].cpu(), rate)

    def real_batch(self, index: int) -> Examples:
        """The real images of round `index`."""
        return self.real.some(self.settings.batch_real, *self.job.stream, index, "real")

    def _end(self, index: int) -> End:
        """The cross-entropy of parameters (P,) on the real images of a round, and its gradient."""
        real = self.real_batch(index)

        def end(theta: Tensor) -> tuple[Tensor, Tensor]:
            gradient, loss = self.judge(theta, real.images, real.targets)
            return loss, gradient

        return end


def learned(state: State) -> tuple[Tensor, Tensor, Tensor]:
    """What a training reads of the state: images, label logits and learning rate."""
    return state["images"], state["targets"], state["log_rate"].exp()
