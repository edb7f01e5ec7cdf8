"""The verbs of `apm`. What they do is imported when they are called, so that help comes at once."""

from pathlib import Path
from typing import Any

import click

from apm_core.errors import ApmError
from apm_core.settings.names import names_in

File = click.Path(path_type=Path)
Positive = click.IntRange(min=1)


class OneLine(click.Group):
    """A group whose verbs end in one line and exit code 1 at an error that a user can repair."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - what the verb returns
        """Call the verb."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader of the output has enough: click knows what to do
            raise
        except (ApmError, OSError) as error:  # OSError: no space, no permission; it names the file
            raise click.ClickException(str(error)) from error


class Numbers(click.ParamType):
    """Numbers with commas between them: 0.49,0.48,0.44."""

    name = "a,b,c"

    def convert(
        self,
        value: str,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> list[float]:
        """The numbers; anything else is refused."""
        try:
            return [float(part) for part in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} is not numbers with commas between them", param, ctx)


@click.group(cls=OneLine, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Looks at the files of dataset distillation, moves sets between formats, trains on them.

    Runs are started with snakemake: see README.md.
    """


@main.command()
@click.argument("file", type=File)
@click.option("--gallery/--no-gallery", default=None, help="Show images; default: on a terminal.")
def inspect(file: Path, gallery: bool | None) -> None:
    """Say what FILE is, how it was made and what it cost."""
    from apm_core.cli import shown

    shown.show(file, gallery=gallery)


@main.command()
@click.argument("file", type=File)
@click.option("--to", "kind", required=True, type=click.Choice(names_in("exports")))
@click.argument("path", type=File)
def export(file: Path, kind: str, path: Path) -> None:
    """Write the distilled set FILE to PATH in another format."""
    from apm_core import distilled

    distilled.load(file).export(kind, path)
    click.echo(f"{path}: {kind}, described in {_sidecar(path)}")


def _sidecar(path: Path) -> Path:
    from apm_core import sidecar

    return sidecar.place(path)


@main.command("import")
@click.argument("path", type=File)
@click.option("--as", "name", required=True, help="Writes sets/NAME.zarr.zip.")
@click.option(
    "--space",
    type=click.Choice(["pixels", "normalised", "whitened"]),
    help="Of the images: pixels in [0, 1], normalised per channel, or whitened by ZCA.",
)
@click.option("--mean", type=Numbers(), help="Of each channel, with --space normalised.")
@click.option("--std", type=Numbers(), help="The same.")
@click.option(
    "--whitening", type=File, help="results/NAME.whitening.zarr.zip, for --space whitened."
)
@click.option("--loss", type=click.Choice(names_in("training.losses")), help="Of its labels.")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="Learning rate.")
def import_(path: Path, name: str, **meaning: Any) -> None:  # noqa: ANN401 - fields of Meaning
    """Make a distilled set of one that somebody published.

    PATH is a .pt file with [images, labels], a folder with images.pt and labels.pt, an .npz file
    or a folder of class folders. What no file says, the options must.
    """
    import yaml

    from apm_core.cli import shown
    from apm_core.imports import foreign

    target = foreign.place(name)
    found = foreign.import_set(path, target, foreign.Meaning(**meaning))
    click.echo("\n".join(shown.facts(found)))
    entry = yaml.safe_dump(
        foreign.entry(found, target), default_flow_style=True, sort_keys=False, width=10**6
    )
    click.echo(f"To evaluate it, with ipc: {found.ipc}, as one more entry of distill.methods:")
    click.echo(f"  - {entry.strip()}")


@main.command()
@click.argument("file", type=File)
@click.option("--arch", required=True, type=click.Choice(names_in("nets.architectures")))
@click.option("--test", type=File, help="Class folders of images to measure the accuracy on.")
@click.option("--networks", type=Positive, default=1, show_default=True)
@click.option("--epochs", type=Positive, help="Default: those of the set's recipe.")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="Default: the recipe's.")
@click.option("--width", type=Positive, help="Channels of the first stage.")
@click.option("--depth", type=Positive, help="Blocks of a ConvNet.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def train(file: Path, arch: str, test: Path | None, **options: Any) -> None:  # noqa: ANN401
    """Train networks on the distilled set FILE by its recipe."""
    from apm_core.cli import training

    training.train(file, arch, test, training.Options(**options), click.echo)


@main.command()
@click.argument("folder", type=File)
@click.option("--ipc", type=Positive, help="Images per class to be distilled.")
@click.option("--resolution", type=Positive, help="Pixels per side to resize to.")
@click.option("--skip-unreadable", is_flag=True, help="Name all damaged files and go on.")
def doctor(folder: Path, ipc: int | None, resolution: int | None, skip_unreadable: bool) -> None:
    """Examine a folder or archive of images before it is distilled."""
    from apm_core.cli import shown

    for line in shown.examined(folder, ipc, resolution, skip_unreadable=skip_unreadable):
        click.echo(line)


@main.command()
@click.argument("configs", type=File, nargs=-1, required=True)
def plan(configs: tuple[Path, ...]) -> None:
    """Count the jobs of a run, and estimate its hours and disk space.

    CONFIGS are laid over config.yaml, one after the other, as with snakemake --configfile.
    """
    from apm_core.cli import planned

    for line in planned.lines(configs):
        click.echo(line)


@main.command()
@click.argument("folder", type=File)
@click.option(
    "--hours", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True
)
@click.option("--ipc", type=Positive, default=10, show_default=True, help="Images per class.")
@click.option(
    "--tiles",
    type=Positive,
    default=2,
    show_default=True,
    help="Smaller images along a side of a stored one.",
)
@click.option("--name", help="Names the results; default: that of the folder.")
@click.option("--cores", type=Positive, help="Default: all.")
@click.option("--out", type=File, help="File to write; default: to the terminal.")
@click.option("--force", is_flag=True, help="Replace the file.")
def fit(folder: Path, out: Path | None, **options: Any) -> None:  # noqa: ANN401 - a wish
    """Write a config for a run on FOLDER that fits into hours here.

    FOLDER has one sub-folder per class. Some steps of training are measured for it, which takes
    about a minute.
    """
    from apm_core.cli import fitted

    for line in fitted.written(folder, out, **options):
        click.echo(line)
