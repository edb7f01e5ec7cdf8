"""A real teacher, trained for a few epochs on CIFAR-10: accuracy and seconds."""

import tempfile
from functools import partial
from pathlib import Path

from apm_core.nets.spec import Spec
from apm_core.runtime.device import Compute
from apm_core.settings.dataset import Images
from apm_core.settings.stages import Demands, PrepareSettings
from apm_core.settings.training import Network, PoolTraining
from apm_core.stages.prepare import prepare
from apm_core.training.inference import accuracy
from apm_core.training.recipe import teacher_recipe
from apm_core.training.trainer import Trainer
from benchmarks.gpu.record import Entries, Figures
from benchmarks.gpu.setup import Setup

ASKED = {"a teacher of 100 epochs, s": {"at most": 12}}


def entries(setup: Setup) -> Entries:
    """One entry where there are data; at tiny sizes the digits, which are always there."""
    if setup.quick:
        images = Images(source="digits", data_dir=None, whitening="channel")
        return {"teacher": partial(figures, images, 4, 1, setup.compute)}
    if setup.data:
        images = Images(source="cifar10", data_dir=str(setup.data))
        return {"teacher": partial(figures, images, 128, 5, setup.compute)}
    return {}


def figures(images: Images, width: int, epochs: int, compute: Compute) -> Figures:
    """Accuracies of two teachers and their seconds; for the second all is compiled."""
    network, seconds, accuracies = Network(width=width), [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.zarr.zip"
        data = prepare(path, PrepareSettings(images=images), demands=Demands(1, [network]))
        train, test = (data.examples(split, compute) for split in ("train", "test"))
        spec = Spec.of(network, data.shape)
    recipe = teacher_recipe(PoolTraining(epochs=epochs))
    trainer = Trainer(spec.network(compute.device), recipe, compute, train, networks=2)
    for member in range(2):
        started = compute.clock()
        trainer.fit(spec.fresh("teacher", member), "teacher", member)
        seconds.append(compute.clock() - started)
        accuracies.append(accuracy(trainer.net, test, compute))
    return {
        "epochs": epochs,
        "accuracy, %": accuracies,
        "training, s": seconds,
        "a teacher of 100 epochs, s": 100 / epochs * seconds[-1],
        "asked": ASKED,
    }
