"""Neural characteristic function matching (NCFM).

Wang et al., "Dataset Distillation with Neural Characteristic Function: A Minmax Perspective", CVPR
2025. The empirical characteristic function of features f is Phi(t) = mean_i exp(i t.f_i); that of
the synthetic images of a class meets that of real ones, in amplitude and phase, at random
frequencies t, or (`sampler`) at frequencies of a network that is trained to find where the two
differ: the images minimise what the sampler maximises. Frame and what differs in it:
`interpolated.py`. Published: 20,000 rounds.

Deviations from the published code, whose configs leave the sampler out:

- The frequencies of a round serve all its classes, where the code draws anew for each. The images
  of a class meet those of no other in the distance, so each class sees the same law.
- The sampler gives as many frequencies as are asked for (the code: 4, each 16 times), and ascends
  once a round, along the sum over classes; its gradient is taken apart from the images' (the code
  adds one pass to the negative of another, which is zero, and the sampler stays as it was).
- Real images are drawn anew every round; the code takes the first 1,024 of a class every time.
- The images' Adam has no weight decay (AdamW, 5e-4) and a constant rate (halved on a plateau of
  500 rounds). The code's second moments see C - 1 steps without a gradient for each with one, so
  that a pass over C classes moves an image about sqrt(C) times as far as one step does here.
- The floor under the root is that of the whole sum; the code has it under the phase alone.
- The recipe's Adam has no weight decay; the code's AdamW takes off about 3 % in a training on 10
  images per class of CIFAR-10.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apm_core.methods.base import Job, Update
from apm_core.methods.features.interpolated import Distance, InterpolatedFeatures
from apm_core.methods.movers import Adam, Momentum, State
from apm_core.nets.flat import FlatNet
from apm_core.runtime import streams
from apm_core.settings.methods.ncfm import NCFMSettings
from apm_core.training.recipe import Recipe

SCALE = 300.0  # of the distance, in the published code
FLOOR = 1e-12  # of squares under a root, whose slope is infinite at 0


class NCFM(InterpolatedFeatures):
    """Moves the images of a class to where the characteristic function of their features is that of
    real ones.
    """

    def __init__(self, settings: NCFMSettings, *, name: str, recipe: Recipe) -> None:
        super().__init__(settings, name=name, recipe=recipe)
        if settings.optimizer == "adam":
            images = Adam(settings.lr_images)
        else:
            images = Momentum(settings.lr_images, momentum=settings.momentum_images)
        self.movers = {"images": images}
        if settings.sampler:
            momentum = settings.momentum_sampler
            self.movers["sampler"] = Momentum(settings.lr_sampler, momentum=momentum)

    def init(self, job: Job) -> State:
        """Start from real images, and from a random sampler."""
        state = super().init(job)
        if self.settings.sampler:
            with streams.seeded(*job.stream, "sampler"):
                vector = FlatNet(sampler(self.size)).vector
            state["sampler"] = vector.to(job.compute.device)
        return state

    def attach(self, job: Job) -> None:
        """Load the real images, and allocate the sampler."""
        super().attach(job)
        blank = torch.zeros(1, *job.spec.shape.image, device=job.compute.device)
        with torch.no_grad():
            self.size = self.net.module.embed(blank).shape[1]
        if self.settings.sampler:
            self.sampler = FlatNet(sampler(self.size).to(job.compute.device))

    def step(self, state: State, index: int) -> Update:
        """Match the characteristic functions, and calibrate; let the sampler ascend."""
        own = self.settings
        random = streams.generator(*self.job.stream, index, "frequencies")
        noise = torch.randn(own.frequencies, self.size, generator=random)
        noise = noise.to(self.job.compute.device)
        if not own.sampler:
            figures, gradient, _ = self.follow(state, index, self._distance(noise))
            return Update(figures, {"images": gradient})
        self.sampler.load(state["sampler"])
        sampled = self.sampler(noise)
        leaf = sampled.detach().requires_grad_()
        figures, gradient, [upwards] = self.follow(state, index, self._distance(leaf), leaf)
        downwards = self.sampler.gradient(-(sampled * upwards).sum())
        return Update(figures, {"images": gradient, "sampler": downwards})

    def _distance(self, frequencies: Tensor) -> Distance:
        """The distance of a class at `frequencies` (K, D)."""
        own = self.settings

        def distance(real: Tensor, synthetic: Tensor) -> Tensor:
            pair = F.normalize(real, dim=1), F.normalize(synthetic, dim=1)
            found = characteristic_distance(*pair, frequencies, own.amplitude, own.phase)
            return SCALE * found

        return distance


def sampler(size: int) -> nn.Sequential:
    """The sampling network: noise (K, D) to frequencies (K, D) in (-1, 1), with D = `size`.

    Batch norm is by the K rows at hand.
    """
    layers: list[nn.Module] = []
    for activation in (nn.LeakyReLU(0.2), nn.LeakyReLU(0.2), nn.Tanh()):
        norm = nn.BatchNorm1d(size, track_running_stats=False)
        layers += [nn.Linear(size, size), norm, activation]
    return nn.Sequential(*layers)


def characteristic_distance(
    real: Tensor, synthetic: Tensor, frequencies: Tensor, amplitude: float, phase: float
) -> Tensor:
    """Distance of two characteristic functions, by amplitude and phase; 0-d, differentiable.

    The mean over t of sqrt(amplitude (A_r - A_s)^2 + 2 phase (A_r A_s - Re(Phi_r conj Phi_s))) with
    A = |Phi|; for both weights 1 that is the mean of |Phi_r - Phi_s|.

    Args:
        real, synthetic: features (n, D) and (m, D).
        frequencies: t, (K, D).
        amplitude, phase: the weights.
    """
    (re_r, im_r), (re_s, im_s) = (_characteristic(f, frequencies) for f in (real, synthetic))
    length_r, length_s = _length(re_r, im_r), _length(re_s, im_s)
    apart = (length_r - length_s).square()
    turned = 2 * (length_r * length_s - re_r * re_s - im_r * im_s)
    return (amplitude * apart + phase * turned).clamp_min(FLOOR).sqrt().mean()


def _characteristic(features: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part (K,) of the characteristic function of features (n, D)."""
    angles = features @ frequencies.T  # (n, K)
    return angles.cos().mean(dim=0), angles.sin().mean(dim=0)


def _length(re: Tensor, im: Tensor) -> Tensor:
    return (re.square() + im.square()).clamp_min(FLOOR).sqrt()
