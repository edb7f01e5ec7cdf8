"""Distilled images as the memory of Avalanche's replay (avalanche-lib 0.6).

    python docs/avalanche_replay.py results/digits_ipc10.apm_plus.zarr.zip work/digits/data.zarr.zip

Classes come in steps of two. A network goes on training on each step beside the distilled images of
the classes before it, by their class labels; `--memory none` leaves these out. The last line is the
accuracy on the test images of all classes.
"""

import argparse

import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from avalanche.training.storage_policy import ExemplarsBuffer
from avalanche.training.supervised import Naive
from torch import Tensor
from torch.utils.data import TensorDataset

import apm_core
from apm_core.data.prepared import PreparedData
from apm_core.distilled import DistilledSet
from apm_core.runtime.device import choose


class Labelled(TensorDataset):
    """Images and classes, in the form that Avalanche reads."""

    def __init__(self, images: Tensor, classes: Tensor) -> None:
        self.targets = classes.tolist()
        super().__init__(images, classes)


class DistilledMemory(ExemplarsBuffer):
    """The distilled images of the classes that were seen."""

    def __init__(self, distilled: DistilledSet) -> None:
        super().__init__(max_size=len(distilled))
        self.distilled = distilled
        self.seen: set[int] = set()

    def post_adapt(self, _: object, exp: object) -> None:
        """Add those of the classes of the step `exp`."""
        self.seen |= set(exp.classes_in_this_experience)
        own = self.distilled.select(classes=sorted(self.seen))
        memory = Labelled(own.images, own.classes)
        self.buffer = nc_benchmark(memory, memory, 1, task_labels=False).train_stream[0].dataset

    def resize(self, _: object, new_size: int) -> None:
        """From the next step on, keep as many images of each class as fit into `new_size`."""
        own = self.distilled
        self.distilled = own.select(ipc=new_size // (len(own.class_names) * own.tiles**2))
        self.max_size = len(self.distilled)


def main() -> None:
    """Train through all steps, and print the accuracy after the last one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("set", help="a distilled set")
    parser.add_argument("data", help="the prepared data that it was distilled from")
    parser.add_argument("--memory", choices=("distilled", "none"), default="distilled")
    parser.add_argument("--epochs", type=int, default=10, help="of each step")
    given = parser.parse_args()
    torch.manual_seed(0)
    distilled, data = apm_core.load(given.set), PreparedData.open(given.data)
    parts = [data.examples(split, choose("cpu")) for split in ("train", "test")]
    train, test = (Labelled(part.images[:], part.targets) for part in parts)
    steps = nc_benchmark(train, test, len(data.class_names) // 2, task_labels=False, seed=0)
    memory = DistilledMemory(distilled)
    replay = ReplayPlugin(memory.max_size, storage_policy=memory)
    net = apm_core.build("convnet", distilled.shape)
    strategy = Naive(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9),
        train_mb_size=64,
        train_epochs=given.epochs,
        plugins=[replay] if given.memory == "distilled" else [],
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True)),
    )
    for step in steps.train_stream:
        strategy.train(step)
    found = strategy.eval(steps.test_stream)
    print(f"accuracy {100 * next(iter(found.values())):.1f} %")


if __name__ == "__main__":
    main()
