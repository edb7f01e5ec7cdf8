"""Neural feature regression with pooling (FRePo).

Zhou, Nezhadarya & Ba, "Dataset Distillation using Neural Feature Regression", NeurIPS 2022. A
network of a pool embeds real and distilled images, kernel ridge regression on the distilled
embeddings and labels predicts the labels of the real images (Eq. 3), and images and labels move
along the gradient of that prediction's error, with the network held still. Then the network learns
from the distilled set for one step (Algorithm 1); after `lifetime` steps a fresh one takes its
place, and as the members of the pool begin at different ages, it holds networks of all stages.

Deviations from the published code: named random streams; the real batch of a round is drawn anew
instead of walking through epochs; the ridge regression runs in float64, for the published jitter
is below the rounding of float32; the distilled set is that of the last round, not the best of many
looks at the test split; the set is trained on with siamese augmentation's groups, one per batch,
not with FRePo's own, and its rate changes from pass to pass, not from step to step.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from apm_core.methods.base import (
    Job,
    Method,
    Shard,
    State,
    are_finite,
    require_embedding,
    require_loss,
    settled,
)
from apm_core.methods.kernel import network_pool, ridge
from apm_core.nets.architectures.frepo_conv import FRePoConv
from apm_core.nets.flat import FlatNet
from apm_core.nets.spec import Spec
from apm_core.runtime import streams
from apm_core.training.losses.half_mse import loss as half_mse
from apm_core.training.optimizers import Moments, lamb_
from apm_core.training.recipe import Recipe

FLOOR = 0.1  # share of the rate that the cosine ends at
LARGEST_BATCH = 1000  # distilled images in a step of a network


class FRePo(Method):
    """The method of one shard.

    Args:
        name: of the method in the config.
        recipe: how the set is trained on; its loss is half_mse. The pool is trained without it.
        lr_images: of images and labels: share of their norm that they move in a round (LAMB); falls
            to a tenth along a cosine.
        batch_real: real images in a round.
        ridge: lambda, as a share of the mean diagonal of the kernel.
        flip: regress on mirrored copies of the images too.
        networks: in the pool.
        lifetime: steps after which a network is replaced.
        lr_network: of the networks (Adam).
    """

    def __init__(
        self,
        *,
        name: str,
        recipe: Recipe,
        lr_images: float,
        batch_real: int,
        ridge: float,
        flip: bool,
        networks: int,
        lifetime: int,
        lr_network: float,
    ) -> None:
        super().__init__(name=name)
        require_loss(self.key("recipe.loss"), recipe, "half_mse", "centred labels")
        self.lr_images, self.batch_real = lr_images, batch_real
        self.ridge, self.flip = ridge, flip
        self.networks, self.lifetime, self.lr_network = networks, lifetime, lr_network

    def init(self, job: Job) -> State:
        """Real images, centred labels, and a pool of fresh networks of staggered ages."""
        self.attach(job)
        images, classes = job.real_images()
        images = images.to(job.compute.device)  # the kernel needs them all at once
        count = job.spec.shape.classes
        targets = centred(classes, count) / math.sqrt(count / 10)
        state: State = {"images": images, "classes": classes, "targets": targets}
        for name in ("images", "targets"):
            state |= network_pool.remembered(name, Moments.at_rest(state[name]))
        networks = network_pool.fresh_pool(self.build, self.networks, *job.stream)
        ages = torch.arange(self.networks) * self.lifetime // self.networks
        return settled(state | networks | {"ages": ages}, self, job)

    def attach(self, job: Job) -> None:
        """Hold the real images, and memory for a network of the pool."""
        self.job = job
        self.build = lambda: distillation_network(job.spec)
        self.net = FlatNet(self.build().to(job.compute.device))
        require_embedding(self.key("network"), job.spec, self.net.module)
        self.real = job.data.examples("train", job.compute)

    def step(self, state: State, index: int) -> dict[str, float]:
        """Move images and labels by one network of the pool, then train that network."""
        stream = (*self.job.stream, index)
        random = streams.generator(*stream, "member")
        member = int(torch.randint(self.networks, (), generator=random))
        network_pool.load(state, member, self.net)
        loss, by_images, by_targets = self._meta_gradient(state, *stream)
        rate = self.lr_images * (FLOOR + (1 - FLOOR) * falling(index, self.job.rounds))
        size = torch.stack([by_images.norm(), by_targets.norm()]).norm()
        figures = {"loss": float(loss), "gradient": float(size), "lr_images": rate}
        if not are_finite(figures):
            return figures
        moved = {}
        for name, gradient in (("images", by_images), ("targets", by_targets)):
            moved[name], memory = state[name].clone(), network_pool.moments(state, name)
            lamb_(moved[name], gradient, memory, rate)
            moved |= network_pool.remembered(name, memory)
        if int(state["ages"][member]) > self.lifetime:
            network_pool.replace(state, member, self.build, *stream)
            state["ages"][member] = 0
        else:
            self._train(moved["images"], moved["targets"], state, member, *stream)
        state |= moved
        return figures

    def finish(self, state: State) -> Shard:
        """The images with their learned labels."""
        shard = super().finish(state)
        return Shard(shard.images, shard.classes, state["targets"].cpu())

    def _meta_gradient(self, state: State, *stream: streams.Key) -> tuple[Tensor, Tensor, Tensor]:
        """The error of the regression's predictions, and its gradients in images and labels."""
        real, wanted = self._real(*stream)
        with torch.no_grad():
            seen = self._embed(real)
        images = state["images"].detach().requires_grad_()
        targets = state["targets"].detach().requires_grad_()
        support, labels = images, targets
        if self.flip:
            support = torch.cat([images, images.flip(-1)])
            labels = torch.cat([targets, targets])
        predicted = seen @ ridge.head(self._embed(support), labels, self.ridge, self.key("ridge"))
        loss = half_mse(predicted, wanted) + ridge.margin(targets, 1 / targets.shape[1])
        return loss.detach(), *torch.autograd.grad(loss, (images, targets))

    def _real(self, *stream: streams.Key) -> tuple[Tensor, Tensor]:
        """Different real images (B, C, H, W) and their centred labels (B, classes)."""
        real = self.real.some(self.batch_real, *stream, "real")
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

    def _train(
        self, images: Tensor, targets: Tensor, state: State, member: int, *stream: streams.Key
    ) -> None:
        """One step of the network in memory on the distilled set, and back with it to the pool."""
        order = torch.randperm(len(images), generator=streams.generator(*stream, "network batch"))
        chosen = order[:LARGEST_BATCH].to(images.device)
        memory, net = network_pool.member_moments(state, member), self.net
        parts = images[chosen], targets[chosen]
        network_pool.train(net, net.module, *parts, memory, self.lr_network, self.job)
        network_pool.store(state, member, net, memory)
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
