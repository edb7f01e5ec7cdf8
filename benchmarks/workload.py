"""Synthetic work of real shapes: images, teachers and shards without a data set."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from apm_core.data.examples import Examples
from apm_core.methods.apm.apm import APM
from apm_core.methods.base import Job
from apm_core.nets.base import Shape
from apm_core.nets.spec import Spec
from apm_core.runtime import streams
from apm_core.runtime.device import Compute
from apm_core.settings.methods.apm import APMSettings
from apm_core.training.recipe import Recipe
from apm_core.training.teacher_pool import TeacherPool

CIFAR10 = Shape(channels=3, resolution=32, classes=10)
IMAGENET64 = Shape(channels=3, resolution=64, classes=1000)
STUDENT = Recipe(passes=1, lr=0.02, loss="l1")


def spec_of(width: int, shape: Shape = CIFAR10) -> Spec:
    """The ConvNet of `width` channels for images of `shape`."""
    return Spec("convnet", shape, width=width)


def examples(count: int, compute: Compute, shape: Shape = CIFAR10) -> Examples:
    """`count` images of noise and as many logits, on the device."""
    random = streams.generator("benchmark", count)
    images = torch.randn(count, *shape.image, generator=random).to(compute.device)
    return Examples(images, torch.randn(count, shape.classes, generator=random).to(compute.device))


@dataclass(frozen=True)
class Noise:
    """Replaces `PreparedData` by noise images of `shape`."""

    shape: Shape

    def shard(self, ipc: int, index: int) -> tuple[Tensor, Tensor]:
        """`ipc` images of noise per class, and their classes."""
        random = streams.generator("benchmark", "shard", index)
        images = torch.randn(ipc * self.shape.classes, *self.shape.image, generator=random)
        return images, torch.arange(self.shape.classes).repeat_interleave(ipc)


def apm(*, epochs: int = 250, checkpoints: int = 5, batch: int | None = None) -> APM:
    """APM with the paper's settings and the logarithm."""
    settings = APMSettings(checkpoints=checkpoints, batch=batch, logarithm=True)
    return APM(settings, name="apm", recipe=STUDENT.with_epochs(epochs))


def job(
    spec: Spec,
    compute: Compute,
    ipc: int,
    *,
    segment: int | None = None,
    home: torch.device | None = None,
) -> Job:
    """The job of a shard of `ipc` noise images per class, with two untrained teachers."""
    net = spec.network(compute.device)
    net.module.eval().requires_grad_(False)
    pool = TeacherPool(spec, torch.stack([spec.fresh("teacher", i) for i in range(2)]), net)
    return Job(
        data=Noise(spec.shape),
        pool=pool,
        compute=compute,
        ipc=ipc,
        shard=0,
        rounds=2500,
        seed=0,
        segment=segment,
        home=home,
    )


def variants(compute: Compute) -> dict[str, Compute]:
    """The ways of this device to compute, by name; the last is the default.

    Nothing compiled where `compute` is not to be, nothing captured where it does not capture, no
    kernels of our own where it has none.
    """
    paths = {}
    for precision in dict.fromkeys(("float32", compute.precision)):
        plain = replace(compute, precision=precision, compile="off", graphs=False, kernels=False)
        paths[precision] = plain
        if compute.compile != "off":
            compiled = replace(plain, compile="on", graphs=compute.graphs)
            paths[f"{precision}, compiled"] = compiled
            if compute.kernels:
                paths[f"{precision}, own kernels"] = replace(compiled, kernels=True)
    return paths
