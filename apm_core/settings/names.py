"""Lookup of modules by name: architectures, losses, data sources. Light to import."""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

from apm_core.errors import ConfigError

ROOT = Path(__file__).parents[1]


def names_in(package: str) -> tuple[str, ...]:
    """The public modules of a folder of apm_core such as "nets.architectures", sorted.

    The folder is listed and nothing of it is imported.
    """
    folder = ROOT.joinpath(*package.split("."))
    modules = (module.name for module in iter_modules([str(folder)]))
    return tuple(sorted(name for name in modules if not name.startswith("_")))


def module_of(package: str, name: str) -> ModuleType:
    """Import the module `name` of `package`; raises ConfigError, listing the names, when there is
    none.
    """
    names = names_in(package)
    if name not in names:
        kind = package.rpartition(".")[2]
        raise ConfigError(f"{name!r} is none of the {kind}: choose one of {', '.join(names)}")
    return import_module(f"apm_core.{package}.{name}")
