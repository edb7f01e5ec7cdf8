"""Stage 1: read, examine and whiten a labelled image set; keep its pixels as uint8."""

from collections.abc import Sequence
from pathlib import Path

from apm_core import nets
from apm_core.data import channel_constants, examine, hold_out, read
from apm_core.data.prepared import KIND, PreparedData
from apm_core.data.room import Room
from apm_core.data.whitening import Whitening
from apm_core.nets.base import Shape
from apm_core.runtime import store
from apm_core.settings.stages import PrepareSettings
from apm_core.settings.training import Network

DECODED = ".decoded"


def prepare(
    path: str | Path, settings: PrepareSettings, *, ipc: int, networks: Sequence[Network]
) -> PreparedData:
    """Read the set that the settings name and write the artifact to `path`.

    `ipc` and `networks` are what later stages will ask for: it is checked here and does not enter
    the artifact. Images from files are decoded into the folder `DECODED` beside `path`, where a
    killed run leaves them for the next.
    Raises DataError when the doctor finds the set unusable, ConfigError for an architecture that
    cannot read it, or a width or depth that it does not take.
    """
    images, seed = settings.images, settings.seed
    room = Room(Path(path).parent / DECODED)
    dataset = read(
        images.source,
        data_dir=images.data_dir,
        resolution=images.resolution,
        channels=images.channels,
        fit=images.fit,
        test_fraction=images.test_fraction,
        split_seed=seed,
        skip_unreadable=images.skip_unreadable,
        room=room,
    )
    if images.held_out:
        dataset = hold_out(dataset, fraction=images.held_out, seed=seed)
    warnings = [*dataset.warnings, *examine(dataset, ipc=ipc, oversample=images.oversample)]
    shape = Shape.of(dataset.train.images.shape, len(dataset.class_names))
    for one in networks:
        nets.require_fit(one.network, shape, width=one.width, depth=one.depth)
    whitening = Whitening.fit(
        dataset.train.images,
        images.whitening,
        eps=images.zca_eps,
        constants=channel_constants(images.source),
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
    store.write(path, KIND, arrays, settings=settings.to_dict(), info=info)
    room.clear()
    return PreparedData.open(path)
