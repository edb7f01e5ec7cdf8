"""Stage 1: read, examine and whiten a labelled image set; keep its pixels as uint8."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apm_core import nets
from apm_core.data import channel_constants, examine, hold_out, read
from apm_core.data.prepared import KIND, PreparedData
from apm_core.data.whitening import Whitening
from apm_core.nets.base import Shape
from apm_core.runtime import store


def prepare(
    path: str | Path, settings: dict[str, Any], *, ipc: int, architectures: Sequence[str]
) -> PreparedData:
    """Read the set that `settings` (the `dataset` section, and the seed) names and write the
    artifact to `path`.

    `ipc` and `architectures` are what later stages will ask for: it is checked here and does not
    enter the artifact.
    Raises DataError when the doctor finds the set unusable, ConfigError for an architecture that
    cannot read it.
    """
    dataset = read(
        settings["source"],
        data_dir=settings["data_dir"],
        resolution=settings["resolution"],
        channels=settings["channels"],
        fit=settings["fit"],
        test_fraction=settings["test_fraction"],
        split_seed=settings["seed"],
    )
    if settings["held_out"]:
        dataset = hold_out(dataset, fraction=settings["held_out"], seed=settings["seed"])
    warnings = [*dataset.warnings, *examine(dataset, ipc=ipc)]
    shape = Shape.of(dataset.train.images.shape, len(dataset.class_names))
    for name in architectures:
        nets.require_fit(name, shape)
    constants = channel_constants(settings["source"])
    whitening = Whitening.fit(
        dataset.train.images, settings["whitening"], eps=settings["zca_eps"], constants=constants
    )
    arrays = {
        "train_images": dataset.train.images,
        "train_labels": dataset.train.labels,
        "test_images": dataset.test.images,
        "test_labels": dataset.test.labels,
        **whitening.arrays(),
    }
    info = {
        "whitening": whitening.kind,
        "class_names": list(dataset.class_names),
        "warnings": warnings,
    }
    store.write(path, KIND, arrays, settings=settings, info=info)
    return PreparedData.open(path)
