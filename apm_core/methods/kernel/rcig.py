"""Reparameterised convexified implicit gradients (RCIG).

Loo, Hasani, Lechner & Rus, "Dataset Distillation with Convexified Implicit Gradients", ICML 2023.
A network of a pool is linearised; on the distilled set its head is solved for and its body trained
(`implicit.py`), and images, labels and a temperature move along the gradient of its error on
real images: the direct one, through the head, and the implicit one, through the trained body, which
may not be the larger of the two. Then the network itself learns from the distilled set for some
steps. The distilled set is a moving average of all rounds.

Deviations from the published code: named random streams; all is computed in float32 at least, the
systems of the head in float64; the tangent parameters start from zero in every round; the
Hessian's rate is in units of the gradient; the kernel of the head is no unknown of the Hessian's
system: both products with the Jacobian mask it, so that its entries of phi and q stay zero; Adam is
that of its paper, which counts its steps from one in every run and adds an epsilon of 1e-8 to the
corrected root, and its inner loss is larger by n C / lambda (`implicit.py`), which only that
epsilon feels; the search for both inner rates begins in leaps; AdaBelief as in its paper; the
regression always sees the whole set, not a random part of it (only the real images pass in
segments); the pool's networks learn from at most 1,000 random images of the set a step, as FRePo's
do; the set is trained on with siamese augmentation's groups, and its rate changes from pass to
pass.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apm_core.methods.base import Job, Method, Shard, Update
from apm_core.methods.kernel import network_pool, ridge
from apm_core.methods.kernel.frepo import LARGEST_BATCH, centred
from apm_core.methods.kernel.implicit import (
    Descent,
    InnerProblem,
    Outcome,
    Tangent,
    WithFeatures,
    implicit_part,
    regress,
)
from apm_core.methods.movers import AdaBelief, Average, State
from apm_core.nets import require_embedding
from apm_core.nets.flat import FlatNet
from apm_core.runtime import streams
from apm_core.settings.methods.rcig import RCIGSettings
from apm_core.training.recipe import Recipe

LEARNED = ("images", "targets", "temperature")
LEAST_RATES = {"inner": 1e-5, "hessian": 5e-5}  # where the search for a rate begins
LARGEST_RATE = 1.0
LEAP, FASTER, SAFER = 4.0, 1.2, 0.7  # factors of the search
WINDOW = 50  # rounds between two changes of the inner rate
ENOUGH, FASTER_INNER = 0.7, 1.05  # share of its runs that fell from which on it rises
TOO_MANY, SLOWER_INNER = 0.29, 0.9  # share of its runs that diverged from which on it shrinks
NETWORK_STEPS = 15  # at most, between two uses of a network


class RCIG(Method):
    """Moves images, labels and a temperature along the implicit gradient of a linearised network.

    The recipe's loss is half_mse. With `flip` the linearised networks see mirrored copies of the
    images too, with the same labels, and the pool learns from them.
    """

    in_segments = True

    def __init__(self, settings: RCIGSettings, *, name: str, recipe: Recipe) -> None:
        super().__init__(settings, name=name, recipe=recipe)
        learned = AdaBelief(settings.lr_images, average=Average(settings.average, from_zero=True))
        temperature = AdaBelief(settings.lr_temperature)
        self.movers = {"images": learned, "targets": learned, "temperature": temperature}

    def init(self, job: Job) -> State:
        """Real images, centred labels, a pool of fresh networks, and rates for the inner problems
        found on the first of them.
        """
        self.attach(job)
        images, classes = job.real_images()
        networks = self.settings.networks
        state = {
            "images": images,
            "classes": classes,
            "targets": centred(classes, job.spec.shape.classes),
            "temperature": torch.zeros(()),
            **network_pool.fresh_pool(self.build, networks, *job.stream),
            "ages": torch.zeros(networks, dtype=torch.int64),
            "fell": 0,
            "diverged": 0,
        }
        return self._with_rates(self.placed(state, job))

    def attach(self, job: Job) -> None:
        """Hold the real images, and memory for a network of the pool."""
        self.job = replace(job, compute=job.compute.exact())
        self.build = lambda: WithFeatures(smoothed(job.spec.build(), self.settings.softplus))
        require_embedding(self.key("network"), job.spec.name)
        self.net = FlatNet(self.build().to(job.compute.device))
        self.real = job.data.examples("train", job.compute)

    def step(self, state: State, index: int) -> Update:
        """The gradient, direct and implicit, by one network of the pool, which is trained when all
        has moved.
        """
        stream = (*self.job.stream, index)
        random = streams.generator(*stream, "member")
        member = int(torch.randint(self.settings.networks, (), generator=random))
        network_pool.load(state, member, self.net)
        loss, gradients, outcome = self._meta_gradient(state, *stream)
        size = torch.stack([gradient.norm() for gradient in gradients]).norm()
        figures = {"loss": float(loss), "gradient": float(size), "lr_inner": state["rate_inner"]}

        def then(moved: State) -> None:
            self._train(moved, member, *stream)
            self._adapt(moved, index, outcome)

        return Update(figures, dict(zip(LEARNED, gradients, strict=True)), then)

    def finish(self, state: State) -> Shard:
        """The averages of images and labels."""
        shard = super().finish(state)
        targets = self.movers["targets"].product(state, "targets")
        return Shard(shard.images, shard.classes, targets.cpu())

    def _meta_gradient(
        self, state: State, *stream: streams.Key
    ) -> tuple[Tensor, tuple[Tensor, ...], Outcome]:
        """The error on real images and its gradients in what is learned; and how the inner
        training went.
        """
        leaves = tuple(state[name].detach().requires_grad_() for name in LEARNED)
        images, targets, temperature = leaves
        support, labels = self._mirrored(images, targets)
        view, lam = Tangent(self.net, support), self._lam(state)
        inner = InnerProblem(view, labels, lam, self.key("ridge"))
        descent = inner.train(self.settings.inner_steps, state["rate_inner"])
        phi = descent.solution.requires_grad_()
        solution, head = regress(view, phi, labels, lam, self.key("ridge"))
        real = self.real.some(self.settings.batch_real, *stream, "real")
        features, outputs = self._push(real.images, phi)
        logits = (outputs + features @ head) * temperature.exp()
        loss = F.cross_entropy(logits, real.targets) + ridge.margin(targets, 0.5 / targets.shape[1])
        gradients = torch.autograd.grad(loss, (outputs, phi, *leaves), retain_graph=True)
        by_outputs, by_phi, *direct = gradients
        by_phi = by_phi + self._pull(real.images, by_outputs)
        q = inner.divide(by_phi, self.settings.inner_steps, state["rate_hessian"]).solution
        implicit = torch.autograd.grad(implicit_part(view, q, solution), (images, targets))
        pairs = zip(direct, implicit, strict=False)  # the temperature has no implicit gradient
        total = [d + capped(i, float(d.norm())) for d, i in pairs]
        return loss.detach(), (*total, direct[-1]), descent.outcome

    def _push(self, real: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D) of real images and their J phi (B, C), a leaf; in segments."""
        views = []
        with torch.no_grad():
            for part in self._parts(real):
                view = Tangent(self.net, part)
                views.append((view.features.detach(), view.push(phi)))
        features, outputs = (torch.cat(parts) for parts in zip(*views, strict=True))
        return features, outputs.requires_grad_()

    def _pull(self, real: Tensor, weights: Tensor) -> Tensor:
        """J^T (P,) of real images times `weights` (B, C); in segments."""
        pairs = zip(self._parts(real), self._parts(weights), strict=True)
        return sum(Tangent(self.net, part).pull(weight) for part, weight in pairs)

    def _parts(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """The tensor in segments."""
        return tensor.split(self.job.segment or len(tensor))

    def _mirrored(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The set as the networks see it."""
        if not self.settings.flip:
            return images, targets
        return torch.cat([images, images.flip(-1)]), torch.cat([targets, targets])

    def _lam(self, state: State) -> float:
        return self.settings.ridge * len(state["images"])

    def _train(self, state: State, member: int, *stream: streams.Key) -> None:
        """Train the network in memory for some steps on the distilled set, and put it into the pool
        as `member`; or a fresh one, when the member is at the end of its life.
        """
        images, targets = self._mirrored(state["images"], state["targets"])
        random = streams.generator(*stream, "network")
        steps = int(torch.randint(1, NETWORK_STEPS + 1, (), generator=random))
        moments, net = network_pool.member_moments(state, member), self.net
        for _ in range(steps):
            order = torch.randperm(len(images), generator=random)
            index = order[:LARGEST_BATCH].to(images.device)
            batch = images[index], targets[index]
            rate = self.settings.lr_network
            network_pool.train(net, net.module.network, *batch, moments, rate, self.job)
        network_pool.store(state, member, net, moments)
        state["ages"][member] += steps
        if int(state["ages"][member]) >= self.settings.lifetime:
            network_pool.replace(state, member, self.build, *stream)
            state["ages"][member] = 0

    def _with_rates(self, state: State) -> State:
        """The state with the largest rates at which the inner problems fall throughout."""
        network_pool.load(state, 0, self.net)
        images, targets = self._mirrored(state["images"], state["targets"])
        view = Tangent(self.net, images)
        inner = InnerProblem(view, targets, self._lam(state), self.key("ridge"))
        _, slope = inner.slope(torch.zeros_like(self.net.vector))
        state["rate_inner"] = largest_rate(
            lambda rate: inner.train(self.settings.inner_steps, rate), LEAST_RATES["inner"]
        )
        state["rate_hessian"] = largest_rate(
            lambda rate: inner.divide(slope, self.settings.inner_steps, rate),
            LEAST_RATES["hessian"],
        )
        return state

    def _adapt(self, state: State, index: int, outcome: Outcome) -> None:
        """Change the inner rate after every window by how its runs went.

        It shrinks when too many diverged, rises when enough fell and not too many diverged, and
        stays otherwise.
        """
        state["fell"] += int(outcome is Outcome.FELL)
        state["diverged"] += int(outcome is Outcome.DIVERGED)
        if (index + 1) % WINDOW:
            return
        if state["diverged"] / WINDOW >= TOO_MANY:
            state["rate_inner"] *= SLOWER_INNER
        elif state["fell"] / WINDOW >= ENOUGH:
            state["rate_inner"] *= FASTER_INNER
        state["fell"] = state["diverged"] = 0


def largest_rate(run: Callable[[float], Descent], rate: float) -> float:
    """The rate, raised as long as runs with it fall throughout, in leaps at first, and then lowered
    for safety.
    """
    while rate * LEAP < LARGEST_RATE and run(rate * LEAP).outcome is Outcome.FELL:
        rate *= LEAP
    while rate < LARGEST_RATE and run(rate).outcome is Outcome.FELL:
        rate *= FASTER
    return rate * SAFER


def capped(tensor: Tensor, norm: float) -> Tensor:
    """The tensor, shortened to `norm` where it is longer."""
    length = float(tensor.norm())
    return tensor * (norm / length) if length > norm else tensor


def smoothed(module: nn.Module, sharpness: float | None) -> nn.Module:
    """The module with a softplus in the place of every ReLU (None: as it is)."""
    if sharpness is None:
        return module
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU):
                setattr(parent, name, nn.Softplus(beta=sharpness))
    return module
