"""CIFAR-100: 50,000 and 10,000 images of 32 x 32 pixels in 100 classes."""

from apm_core.data.dataset import Dataset, PublicSize
from apm_core.data.request import Request

# true std of CIFAR-100 itself; several distillation codes reuse CIFAR-10's figures here
CHANNELS = ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))
SIZE = PublicSize(50_000, 10_000, 3, 32, 100)


def read(request: Request) -> Dataset:
    """Read the official files; raises DataError when they are missing or damaged."""
    from torchvision.datasets import CIFAR100  # takes seconds, which its size is known without

    from apm_core.data.cifar import read_cifar

    return read_cifar(CIFAR100, request)
