"""Config files, read and laid over each other as Snakemake does it."""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from apm_core.errors import ConfigError
from apm_core.settings.names import ROOT
from apm_core.settings.section import laid_over

BASE = ROOT.parent / "config.yaml"  # of the repository, under all others


def read(paths: Iterable[Path]) -> dict[str, Any]:
    """What the config files `paths` state, laid over config.yaml, where that is at hand, and over
    each other; raises ConfigError for a file that is missing or none.
    """
    base = [BASE] if BASE.is_file() else []
    return functools.reduce(laid_over, map(_stated, [*base, *paths]), {})


def _stated(path: Path) -> dict[str, Any]:
    try:
        stated = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file: check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: is not YAML ({reason})") from error
    if not isinstance(stated, dict):
        raise ConfigError(f"{path}: holds {type(stated).__name__}, expected keys and values")
    return stated
