"""A run that fits into some hours: sizes and rounds chosen by what the machine was measured to do.

What is chosen among was measured on CIFAR-10 (docs/results.md): `apm_plus` with early teachers,
students of 25 epochs in small batches, tiles; the rate of the images without ZCA on Tiny ImageNet.
The only thing measured on the images at hand is how long networks take for them.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from apm_core.data.survey import Survey
from apm_core.errors import ConfigError
from apm_core.estimate.size import Size
from apm_core.estimate.speed import Speed, expected
from apm_core.estimate.work import works
from apm_core.nets.base import Shape
from apm_core.settings.plan import Plan
from apm_core.settings.run import RunSettings
from apm_core.settings.section import laid_over

SHARE = 0.85  # of the hours that is planned with: estimates err
SIDES = (128, 64, 32, 16)  # pixels
TINY = 8  # pixels, of images that are no larger
LARGEST_ZCA = 32  # pixels: its matrix grows with the fourth power of the side
TEACHER_STEPS = 780  # of an early teacher: 4 passes over 50,000 images in batches of 256
LEAST_PASSES, MOST_PASSES = 4, 40  # of a teacher: of few images more are learned by heart
ENOUGH, LEAST, MOST = 60, 20, 600  # rounds
STUDENT_EPOCHS = 25
# of the images, by whitening: for a hundred of them, and at most
RATES = {"zca": (3.0, 15.0), "channel": (85.0, 425.0)}
FULL_PASSES = 3  # of the networks on all images, for every pass of a teacher


@dataclass(frozen=True)
class Wish:
    """What a person asks for."""

    hours: float
    ipc: int
    tiles: int
    name: str
    data_dir: str
    cores: int


@dataclass(frozen=True)
class Level:
    """How much is trained: networks and how wide they are."""

    width: int
    teachers: int
    networks: int  # of the evaluation
    epochs: int  # of each of these
    enough: int = ENOUGH  # rounds, without which it is not chosen


LEVELS = (  # the richest first
    Level(128, 10, 5, 300),
    Level(64, 10, 5, 300),
    Level(32, 10, 5, 300),
    Level(32, 6, 3, 200),
    Level(32, 4, 3, 100),
)
LAST = Level(16, 2, 2, 60, LEAST)  # with the smallest images alone


@dataclass(frozen=True)
class Choice:
    """A config, and what it is expected to take on the machine that was measured."""

    config: dict[str, Any]
    speed: Speed
    seconds: dict[str, float]  # by stage; the start of all jobs is one of them

    @property
    def total(self) -> float:
        """Seconds of the whole run."""
        return sum(self.seconds.values())


def fit(
    found: Survey, wish: Wish, base: Mapping[str, Any], measure: Callable[[Shape], Speed]
) -> Choice:
    """The richest run of the images `found` that fits into the hours.

    Args:
        found: what the folder holds.
        wish: what is asked for.
        base: the config that the chosen one is laid over.
        measure: gives the speed of the machine for images of a shape.

    Raises:
        ConfigError: no sensible run fits, or a class has too few images.
    """
    tiles = _tiles(found, wish)
    shortest = math.inf
    for side, levels in _sizes(found, tiles):
        shape = Shape(found.channels, side, len(found.train))
        size = Size(sum(found.train.values()), sum(found.test.values()), shape)
        speed = measure(shape)

        def tried(level: Level, rounds: int, size: Size = size, speed: Speed = speed) -> Choice:
            config = _config(wish, size, level, tiles, rounds)
            plan = Plan(RunSettings.of(laid_over(base, config)))
            return Choice(config, speed, expected(speed, plan, works(plan, size)))

        for level in levels:
            least = tried(level, level.enough)
            shortest = min(shortest, least.total)
            if least.total <= SHARE * wish.hours * 3600:
                return _filled(lambda rounds, level=level: tried(level, rounds), level, wish)
    raise ConfigError(
        f"--hours {wish.hours:g}: the smallest sensible run of these images takes about"
        f" {shortest / SHARE / 3600:.2g} hours here: give it as many, or a smaller --ipc"
    )


def _filled(tried: Callable[[int], Choice], level: Level, wish: Wish) -> Choice:
    """The choice with the most rounds that fit."""
    low, high = level.enough, MOST
    while low < high:
        middle = (low + high + 1) // 2
        if tried(middle).total <= SHARE * wish.hours * 3600:
            low = middle
        else:
            high = middle - 1
    return tried(low)


def _tiles(found: Survey, wish: Wish) -> int:
    """As many tiles as are wished for, one where a class has too few images for them."""
    name = min(found.train, key=found.train.__getitem__)
    if found.train[name] >= wish.ipc * wish.tiles**2:
        return wish.tiles
    if found.train[name] >= wish.ipc:
        return 1
    raise ConfigError(
        f"--ipc {wish.ipc}: class {name!r} has only {found.train[name]} training images: lower"
        " --ipc, or add images"
    )


def _sizes(found: Survey, tiles: int) -> Iterator[tuple[int, tuple[Level, ...]]]:
    """The sides that images can have, the largest first, each with its levels."""
    fitting = [side for side in (*SIDES, TINY) if side <= found.side and side % (4 * tiles) == 0]
    sides = [side for side in fitting if side in SIDES] or fitting
    if not sides:
        raise ConfigError(
            f"--tiles {tiles}: images of {found.side} pixels can be resized to no side of"
            f" {TINY} to {max(SIDES)} pixels that {4 * tiles} divides: --tiles 1"
            if tiles > 1
            else f"images of {found.side} pixels are too small: at least {TINY} are needed"
        )
    for side in sides:
        yield side, (*LEVELS, LAST) if side == sides[-1] else LEVELS


def _config(wish: Wish, size: Size, level: Level, tiles: int, rounds: int) -> dict[str, Any]:
    """The settings of a run."""
    images = wish.ipc * size.shape.classes * tiles**2  # as networks see them
    teacher_batch = _power_of_two(size.train / 64)
    passes = round(TEACHER_STEPS * teacher_batch / size.train)
    teacher_epochs = min(MOST_PASSES, max(LEAST_PASSES, passes))
    side = size.shape.resolution
    whitening = "zca" if side <= LARGEST_ZCA else "channel"
    rate, most = RATES[whitening]
    return {
        "ipc": wish.ipc,
        "dataset": {
            "name": wish.name,
            "source": "folder",
            "data_dir": wish.data_dir,
            "resolution": side,
            "channels": size.shape.channels,
            "whitening": whitening,
        },
        "compute": {"threads": wish.cores},
        "teachers": {"width": level.width, "batch": teacher_batch, "drop_at": 0.7},
        "aligned_teachers": {
            "n": level.teachers,
            "per_job": level.teachers,
            "epochs": teacher_epochs,
            "batch": teacher_batch,
            "snapshots": True,
        },
        "recipe": {"epochs": STUDENT_EPOCHS, "lr": 0.05, "batch": _batch(images)},
        "distill": {"methods": ["random_plus", "apm_plus"], "tiles": tiles, "rounds": rounds},
        "methods": {
            "apm_plus": {
                "lr_images": round(min(most, rate * math.sqrt(max(1.0, images / 100))), 1),
                "teacher_epochs": [teacher_epochs // 2, teacher_epochs],
                "label_epoch": teacher_epochs,
            }
        },
        "evaluate": {
            "networks": level.networks,
            "epochs": level.epochs,
            "architectures": ["convnet"],
            "rates": [0.3, 1.0, 3.0],
            "hard_labels": [],
            "plain": [],
            "ceiling": {
                "architectures": ["convnet"],
                "networks": 2,
                "epochs": FULL_PASSES * teacher_epochs,
            },
        },
        "nas": {"networks": 0},
    }


def _batch(images: int) -> int:
    """The batch of students: 16 for 100 images, 64 for 400."""
    return _power_of_two(images / 6.25)


def _power_of_two(size: float) -> int:
    """The nearest one from 16 to 256."""
    return min(256, max(16, 2 ** round(math.log2(size))))
