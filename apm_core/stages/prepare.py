"""Stage 1: read, examine and whiten a labelled image set; keep its pixels as uint8."""

from pathlib import Path

from apm_core import nets
from apm_core.data import channel_constants, examine, hold_out, read
from apm_core.data.prepared import KIND, PreparedData
from apm_core.data.room import Room
from apm_core.data.tiles import require_division
from apm_core.data.whitening import Whitening
from apm_core.nets.base import Shape
from apm_core.runtime import store
from apm_core.settings.stages import Demands, PrepareSettings

DECODED = ".decoded"


def prepare(path: str | Path, settings: PrepareSettings, *, demands: Demands) -> PreparedData:
    """Read the set that the settings name and write the artifact to `path`.

    `demands` are those of later stages: they are checked here and do not enter the artifact.
    Images from files are decoded into the folder `DECODED` beside `path`, where a killed run leaves
    them for the next.
    Raises DataError when the doctor finds the set unusable, ConfigError for other demands that it
    does not meet: an architecture that cannot read it, or a width or depth that it does not take;
    one without the embedding that an entry reads; tiles that do not divide its side.
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
    found = examine(dataset, ipc=demands.images_per_class, oversample=images.oversample)
    warnings = [*dataset.warnings, *found]
    require_fit(Shape.of(dataset.train.images.shape, len(dataset.class_names)), demands)
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


def require_fit(shape: Shape, demands: Demands) -> None:
    """Raise ConfigError unless networks, tiles and embeddings go with images of `shape`."""
    for one in demands.networks:
        nets.require_fit(one.network, shape, width=one.width, depth=one.depth)
    for key, name in demands.embedding.items():
        nets.require_embedding(key, name)
    for key, factor in demands.tiles.items():
        require_division(key, factor, shape.resolution)
