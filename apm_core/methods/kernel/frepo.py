"""Neural feature regression with pooling (FRePo).

Zhou, Nezhadarya & Ba, "Dataset Distillation using Neural Feature Regression", NeurIPS 2022. A
network of a pool embeds real and distilled images, kernel ridge regression on the distilled
embeddings and labels predicts the labels of the real images (Eq. 3), and images and labels move
along the gradient of that prediction's error, with the network held still. Then the network learns
from the distilled set for one step (Algorithm 1); after `lifetime` + 1 steps a fresh one takes its
place, and as the members of the pool begin at different ages, it holds networks of all stages.

Deviations from the published code: named random streams; the real batch of a round is drawn anew
instead of walking through epochs; the ridge regression runs in float64, for the published jitter
is below the rounding of float32; batch norm's running variance averages the unbiased variance of a
batch, as torch has it, where flax averages the biased one; the distilled set is that of the last
round, not the best of many looks at the test split; the set is trained on with siamese
augmentation's groups, one per batch, not with FRePo's own, and its rate changes from pass to pass,
not from step to step.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from apm_core.methods.base import Job, Method, Shard, Update
from apm_core.methods.kernel import network_pool, ridge
from apm_core.methods.movers import Lamb, State
from apm_core.methods.passes import FORWARD, TO_IMAGES, TRAINED, Extent, Passes
from apm_core.nets import require_embedding
from apm_core.nets.architectures.frepo_conv import FRePoConv
from apm_core.nets.flat import FlatNet
from apm_core.nets.spec import Spec
from apm_core.runtime import streams
from apm_core.settings.methods.frepo import FRePoSettings
from apm_core.training.losses.half_mse import loss as half_mse
from apm_core.training.recipe import Recipe

FLOOR = 0.1  # share of the rate that the cosine ends at
LARGEST_BATCH = 1000  # distilled images in a step of a network


class FRePo(Method):
    """Moves images and labels to where regression on them predicts the labels of real images.

    The pool is trained without the recipe, whose loss is half_mse.
    """

    in_segments = True

    def __init__(self, settings: FRePoSettings, *, name: str, recipe: Recipe) -> None:
        super().__init__(settings, name=name, recipe=recipe)
        self.movers = {"images": Lamb(self._rate), "targets": Lamb(self._rate)}

    def _rate(self, index: int) -> float:
        share = FLOOR + (1 - FLOOR) * falling(index, self.job.rounds)
        return self.settings.lr_images * share

    def passes(self, extent: Extent) -> Passes:
        """Real images, distilled ones and their mirrors, and a step of the network.

        The ridge regression beside the networks is left out.
        """
        views = 2 if self.settings.flip else 1
        batch = min(extent.images, LARGEST_BATCH)
        meta = FORWARD * self.settings.batch_real + TO_IMAGES * views * extent.images
        return Passes(meta + TRAINED * batch, 3)

    def init(self, job: Job) -> State:
        """Real images, centred labels, and a pool of fresh networks of staggered ages."""
        self.attach(job)
        images, classes = job.real_images()
        count, networks = job.spec.shape.classes, self.settings.networks
        return {
            "images": images,
            "classes": classes,
            "targets": centred(classes, count) / math.sqrt(count / 10),
            **network_pool.fresh_pool(self.build, networks, *job.stream),
            "ages": torch.arange(networks) * self.settings.lifetime // networks,
        }

    def attach(self, job: Job) -> None:
        """Hold the real images, and memory for a network of the pool."""
        self.job = job
        self.build = lambda: distillation_network(job.spec)
        self.net = FlatNet(self.build().to(job.compute.device))
        require_embedding(self.key("network"), job.spec.name)
        self.real = job.data.examples("train", job.compute)

    def step(self, state: State, index: int) -> Update:
        """The gradient of the regression's error by one network of the pool, which is trained when
        all has moved.
        """
        stream = (*self.job.stream, index)
        random = streams.generator(*stream, "member")
        member = int(torch.randint(self.settings.networks, (), generator=random))
        network_pool.load(state, member, self.net)
        loss, by_images, by_targets = self._meta_gradient(state, *stream)
        size = torch.stack([by_images.norm(), by_targets.norm()]).norm()
        figures = {"loss": float(loss), "gradient": float(size)}
        gradients = {"images": by_images, "targets": by_targets}
        return Update(figures, gradients, then=lambda moved: self._train(moved, member, *stream))

    def finish(self, state: State) -> Shard:
        """The images with their learned labels."""
        shard = super().finish(state)
        return Shard(shard.images, shard.classes, state["targets"].cpu())

    def _meta_gradient(self, state: State, *stream: streams.Key) -> tuple[Tensor, Tensor, Tensor]:
        """The error of the regression's predictions, and its gradients in images and labels."""
        real, truth = self._real(*stream)
        with torch.no_grad():
            features = self._embed(real)
        images = state["images"].detach().requires_grad_()
        targets = state["targets"].detach().requires_grad_()
        support, labels = images, targets
        if self.settings.flip:
            support = torch.cat([images, images.flip(-1)])
            labels = torch.cat([targets, targets])
        head = ridge.head(self._embed(support), labels, self.settings.ridge, self.key("ridge"))
        loss = half_mse(features @ head, truth) + ridge.margin(targets, 1 / targets.shape[1])
        return loss.detach(), *torch.autograd.grad(loss, (images, targets))

    def _real(self, *stream: streams.Key) -> tuple[Tensor, Tensor]:
        """Different real images (B, C, H, W) and their centred labels (B, classes)."""
        real = self.real.some(self.settings.batch_real, *stream, "real")
        return real.images, centred(real.targets, self.job.spec.shape.classes)

    def _embed(self, images: Tensor) -> Tensor:
        """Features (N, D) of the images, by the running statistics where there are any; the graph
        holds one segment of them at a time.
        """
        self.net.module.eval()

        def embed(part: Tensor) -> Tensor:
            with self.job.compute.autocast():
                return self.net.module.embed(part).to(self.net.vector.dtype)

        if self.job.segment is None or self.job.segment >= len(images):
            return embed(images)
        options = {"use_reentrant": False, "preserve_rng_state": False}
        parts = images.split(self.job.segment)
        return torch.cat([checkpoint(embed, part, **options) for part in parts])

    def _train(self, state: State, member: int, *stream: streams.Key) -> None:
        """Train the network in memory for one step on the distilled set, and put it into the pool
        as `member`; or put a fresh one there, when the member is at the end of its life.
        """
        if int(state["ages"][member]) > self.settings.lifetime:
            network_pool.replace(state, member, self.build, *stream)
            state["ages"][member] = 0
            return
        images, targets, net = state["images"], state["targets"], self.net
        order = torch.randperm(len(images), generator=streams.generator(*stream, "network batch"))
        index = order[:LARGEST_BATCH].to(images.device)
        moments = network_pool.member_moments(state, member)
        batch = images[index], targets[index]
        rate = self.settings.lr_network
        network_pool.train(net, net.module, *batch, moments, rate, self.job)
        network_pool.store(state, member, net, moments)
        state["ages"][member] += 1


def distillation_network(spec: Spec) -> nn.Module:
    """A fresh network to distil with: FRePo's own has batch norm then, and none when it is used."""
    if spec.name == "frepo_conv":
        return FRePoConv(spec.shape, batch_norm=True)
    return spec.build()


def centred(classes: Tensor, count: int) -> Tensor:
    """One-hot labels (N, count) less 1 / count."""
    return F.one_hot(classes, count).float() - 1 / count


def falling(index: int, rounds: int) -> float:
    """Half a cosine from 1 in round 0 to 0 in the last round."""
    return 0.5 * (1 + math.cos(math.pi * index / max(rounds, 1)))
