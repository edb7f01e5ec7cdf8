"""Imports run downwards only, and names are known without importing what they name."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from apm_core.errors import ConfigError
from apm_core.settings.names import ROOT, module_of, names_in

# from the lowest to the highest; a module imports its own layer and those before it
LAYERS = (
    "errors",
    "settings",
    "runtime",
    "nets",
    "data",
    "training",
    "distilled",
    "sidecar",
    "exports",
    "imports",
    "methods",
    "estimate",
    "scores",
    "report",
    "stages",
    "cli",
)
# what each module of a folder must define
CONTRACTS = {
    "nets.architectures": {"NETWORK"},
    "training.losses": {"loss"},
    "training.metrics": {"measure"},
    "data.sources": {"read", "CHANNELS", "SIZE"},
    "exports": {"export", "SUFFIX"},
}
LIGHT = f"""
import sys
from apm_core.settings.names import names_in
for package in {tuple(CONTRACTS)}:
    assert names_in(package)
sys.exit(bool({{"torch", "numpy", "PIL"}} & set(sys.modules)))
"""


def imported(source: str) -> Iterator[str]:
    """The layers of apm_core that `source` imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are written in full"
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for path in paths:
            top, *inside = path.split(".")
            if top == "apm_core" and inside:
                yield inside[0]


def layer_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


FILES = [file for file in sorted(ROOT.rglob("*.py")) if file != ROOT / "__init__.py"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_run_downwards(file):
    own = LAYERS.index(layer_of(file))
    upwards = {layer for layer in imported(file.read_text()) if LAYERS.index(layer) > own}
    assert not upwards, f"{layer_of(file)} lies below {upwards}"


def test_imports_are_found_wherever_they_are_written():
    source = """
import apm_core.nets.base as base
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from apm_core.stages.merge import merge
def late():
    from apm_core import data, scores
"""
    assert list(imported(source)) == ["nets", "stages", "data", "scores"]


def test_names_are_listed_without_loading_what_they_name():
    done = subprocess.run([sys.executable, "-c", LIGHT], cwd=ROOT.parent)
    assert done.returncode == 0


def test_names_are_those_of_the_public_modules():
    assert names_in("data.sources") == (
        *("cifar10", "cifar100", "digits", "folder", "imagenet", "tiny_imagenet"),
    )
    for package in CONTRACTS:
        files = {file.stem for file in ROOT.joinpath(*package.split(".")).glob("*.py")}
        assert set(names_in(package)) == {name for name in files if not name.startswith("_")}


@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package in CONTRACTS for name in names_in(package)]
)
def test_every_module_defines_what_its_folder_asks_for(package, name):
    assert CONTRACTS[package] <= vars(module_of(package, name)).keys()


@pytest.mark.parametrize("name", ["", "vgg", "__init__", "..base", "flat", None])
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    message = r"is none of the architectures: choose one of alexnet, convnet, frepo_conv"
    with pytest.raises(ConfigError, match=message):
        module_of("nets.architectures", name)
