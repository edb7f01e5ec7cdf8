"""`apm fit`: a config for a folder of images that fits into some hours on this machine."""

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from apm_core.data.survey import Survey, survey
from apm_core.errors import ConfigError
from apm_core.estimate.fitting import SHARE, Choice, Wish, fit
from apm_core.estimate.speed import busy, fused_share, measured, told
from apm_core.runtime.device import choose
from apm_core.runtime.store import atomic_path
from apm_core.settings import config_files
from apm_core.settings.run import RunSettings

NOTES = {  # above the sections of the config
    "ipc": "images per class of the distilled set",
    "compute": "one job at a time, with all cores",
    "teachers": "width of all networks, and how those on all images are trained: the ceiling",
    "aligned_teachers": "whose predictions are matched, and whose mean is the label: early ones",
    "recipe": "of students, and of whoever uses the set: few epochs of small batches",
    "distill": "random_plus is the control: real images that the teachers recognise, same labels",
    "evaluate": "networks trained from scratch on each set, at the best of the rates",
}


def written(
    folder: Path,
    out: Path | None,
    *,
    force: bool,
    hours: float,
    ipc: int,
    tiles: int,
    name: str | None,
    cores: int | None,
) -> Iterator[str]:
    """Choose a config for `folder`, write it to `out`, and tell; without `out` the config is what
    is told.

    Raises ConfigError when nothing fits or `out` is there and not to be replaced (`force`),
    DataError for what is no folder of images.
    """
    if out and out.exists() and not force:
        raise ConfigError(f"{out}: there is such a file: name another, or say --force")
    base = config_files.read([])
    found = survey(folder, test_fraction=RunSettings.of(base).dataset.test_fraction)
    cores = cores or len(os.sched_getaffinity(0))
    wish = Wish(hours, ipc, tiles, name or named(folder), str(folder), cores)
    torch.set_num_threads(cores)
    note = busy()
    compute = choose("cpu", compile="off")
    fused = fused_share(measured(compute=compute), compute)
    choice = fit(found, wish, base, lambda shape: replace(measured(shape, compute), fused=fused))
    text = "\n".join(lines(found, wish, choice, out, note)) + "\n"
    if out is None:
        yield text.rstrip("\n")
        return
    with atomic_path(out) as path:
        path.write_text(text, encoding="utf-8")
    yield from summary(found, wish, choice, note)
    yield f"{out}: start it with"
    yield f"  {command(wish, out)}"


def summary(found: Survey, wish: Wish, choice: Choice, note: str | None) -> Iterator[str]:
    """What was found and chosen, and a note on how it was measured, if there is one."""
    train, test = sum(found.train.values()), sum(found.test.values())
    smallest, largest = found.sides
    sides = f"{smallest}" if found.alike else f"{smallest} to {largest}"
    colour = "colour" if found.channels == 3 else "grey"
    yield (
        f"{len(found.train)} classes, {train} training and {test} test images, {colour}, {sides}"
        " pixels a side"
    )
    if choice.config["distill"]["tiles"] < wish.tiles:
        yield (
            f"whole images: a class has {min(found.train.values())} training images, and tiles of"
            f" {wish.tiles} start from {wish.ipc * wish.tiles**2}"
        )
    speed = choice.speed
    yield (
        f"measured on {wish.cores} cores at {choice.config['dataset']['resolution']} pixels: a"
        f" million operations {1e12 * speed.flop_s:.3g} us, a thousand values written"
        f" {1e9 * speed.value_s:.3g} us, a step {1e3 * speed.step_s:.3g} ms"
    )
    stages = ", ".join(f"{stage} {told(s)}" for stage, s in choice.seconds.items() if s >= 1)
    yield f"expected: {told(choice.total)} of {told(3600 * wish.hours)} ({stages})"
    if note:
        yield note


def lines(
    found: Survey, wish: Wish, choice: Choice, out: Path | None, note: str | None
) -> Iterator[str]:
    """The config with comments."""
    yield f"# {command(wish, out or Path(f'{wish.name}.yaml'))}"
    yield f"# Chosen by `apm fit` for {wish.hours:g} hours, of which {SHARE:.0%} are planned with."
    yield from (f"# {line}" for line in summary(found, wish, choice, note))
    yield ""
    for section, values in choice.config.items():
        if section in NOTES:
            yield f"# {NOTES[section]}"
        text = yaml.safe_dump(
            {section: values},
            sort_keys=False,
            default_flow_style=None if isinstance(values, dict) else False,
            allow_unicode=True,
            width=120,
        )
        yield text.rstrip("\n")


def command(wish: Wish, config: Path) -> str:
    """What starts the run."""
    target = f"results/{wish.name}_ipc{wish.ipc}.json"
    return f"snakemake --configfile {shlex.quote(str(config))} --cores {wish.cores} -- {target}"


def named(folder: Path) -> str:
    """A name for files after that of the folder."""
    name = re.sub(r"[^A-Za-z0-9-]+", "_", folder.resolve().name).strip("_")
    return name or "images"
