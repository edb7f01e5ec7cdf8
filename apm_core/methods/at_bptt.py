"""Automatic truncated back-propagation through training (AT-BPTT).

Li et al., "Beyond Random: Automatic Inner-loop Optimization in Dataset Distillation", NeurIPS 2025,
arXiv:2510.04838. BPTT whose window of differentiated steps, W of T, begins at t and changes with
the stage of the distillation:

- early: a probe, a training of a fresh network on the images, has gradient norms g_0..g_T-1;
  t ~ softmax(g), at most T less the window's size, which is int(W - d + 2 d r / T), where r is how
  many of the changes |g_i - g_i-1| (0 for i = 0) are smaller than that at t;
- middle: t is uniform, as in RaT-BPTT, the size W + d;
- late: the size is W - d, and t is T less the size and less a draw from softmax(g), at least 0.

A window is kept for a period of rounds. Where the mean accuracy on the real images of the rounds
gains too little for so many periods in a row (published: 0.15 T, then 0.125 T), the next stage
begins. The state's `policy` has all of this that one round leaves to the next.

Deviations from the published code, apart from those of `bptt.py`: W is that of the settings (there,
each window's size takes the place of W, so that it drifts, and grows without end in the middle
stage); a period is a number of rounds (a pass over the real images), and counts for one stage;
images start as real ones, and labels as their classes (Gaussian noise, and one-hot); gradients are
not clipped; labels may be negative, as they are logits; a round looks at 512 real images as they
are (5,000, or 1,000, mirrored and rotated), and there are 10,000 rounds (60,000 steps). The numbers
of calm periods are those of T = 200; published beside CIFAR-10 are T = 300, W = 100, d up to 30.
The low-rank Hessian of the paper is left out: the gradient of the window is exact, in memory that
does not grow with it.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from apm_core.methods.base import Job, Update
from apm_core.methods.bptt import BPTT, learned
from apm_core.methods.movers import State
from apm_core.methods.passes import FORWARD, Extent, Passes
from apm_core.runtime import streams
from apm_core.training.metrics.accuracy import measure as percent_correct

EARLY, MIDDLE, LATE = 1, 2, 3
Policy = dict[str, Any]  # numbers, as they are saved


class ATBPTT(BPTT):
    """BPTT in a window whose place and size follow the gradients and the stage."""

    def passes(self, extent: Extent) -> Passes:
        """As BPTT, with the accuracy on the real images and a share of the probe; windows are
        counted as in the middle of what they can be.
        """
        own = self.settings
        probe = self.inner.passes(extent.images, self.inner.steps, 0)
        accuracy = Passes(FORWARD * own.batch_real, 1)
        return super().passes(extent) + accuracy + (1 / own.period) * probe

    def init(self, job: Job) -> State:
        """As BPTT, in the early stage."""
        policy: Policy = {
            "stage": EARLY,
            "calm": 0,  # periods in a row
            "before": 0.0,  # accuracy of the period before, in percent
            "accuracy": 0.0,  # of the rounds of this one, divided by all of its rounds
            "first": 0,  # step of the window
            "window": self.settings.window,  # steps
        }
        return {**super().init(job), "policy": policy}

    def step(self, state: State, index: int) -> Update:
        """Train a fresh network, and differentiate its loss on real images through the window."""
        policy: Policy = state["policy"]
        if index % self.settings.period == 0:
            first, window = self.place(state, index)
            policy = {**policy, "first": first, "window": window, "accuracy": 0.0}
        match = self.match(state, index, policy["first"], policy["window"])
        real = self.real_batch(index)
        with torch.no_grad(), self.job.compute.autocast():
            accuracy = percent_correct(self.net.at(match.end, real.images), real.targets)
        update = self.update(state, match)
        shown = {name: float(policy[name]) for name in ("stage", "first", "window")}
        policy = {**policy, "accuracy": policy["accuracy"] + accuracy / self.settings.period}
        if (index + 1) % self.settings.period == 0:
            policy = self.judged(policy)
        return replace(
            update,
            figures={**update.figures, "accuracy": accuracy, **shown},
            then=lambda moved: moved.update(policy=policy),
        )

    def rehearse(self, state: State, clock: Callable[[], float]) -> tuple[int, float]:
        """Rehearse a round with the probe, of which a period has one, and a round without."""
        first, other = (self.seconds_of(index, state, clock) for index in (0, 1))
        return len(state["images"]), other + (first - other) / self.settings.period

    def place(self, state: State, index: int) -> tuple[int, int]:
        """First step and size of the window of the period that begins with round `index`."""
        size, d, total = self.settings.window, self.settings.spread, self.inner.steps
        stage = state["policy"]["stage"]
        random = streams.generator(*self.job.stream, index, "window")
        if stage == MIDDLE:
            return int(torch.randint(total - size - d + 1, (), generator=random)), size + d
        norms = self.gradient_norms(state, index)
        below = norms.softmax(dim=0).cumsum(dim=0)
        drawn = torch.rand((), generator=random, dtype=below.dtype)
        at = min(int(torch.searchsorted(below, drawn)), total - 1)
        if stage == LATE:
            return max(0, total - size + d - at), size - d
        changes = norms.diff(prepend=norms[:1]).abs()
        rank = int((changes < changes[at]).sum())
        window = int(size - d + 2 * d * rank / total)
        return min(at, total - window), window

    def gradient_norms(self, state: State, index: int) -> Tensor:
        """The norms (T,) float64 of the gradients in the training of a fresh network, which are
        its steps divided by the rate.
        """
        start, steps = self.fresh(state, index, "probe"), self.steps(state, index, "probe")
        course = self.training.course(start, steps, *learned(state))
        moves = torch.stack([(b - a).norm() for a, b in pairwise(course)])
        return moves.cpu().double() / float(state["log_rate"].exp())

    def judged(self, policy: Policy) -> Policy:
        """The policy after a period: its accuracy compared with that of the period before."""
        own, stage, accuracy = self.settings, policy["stage"], policy["accuracy"]
        least, most = own.gain_early, own.calm_early
        if stage == MIDDLE:
            least, most = own.gain_middle, own.calm_middle
        calm = policy["calm"] + 1 if accuracy - policy["before"] < least else 0
        if stage < LATE and calm == most:
            stage, calm = stage + 1, 0
        return {**policy, "stage": stage, "calm": calm, "before": accuracy}
