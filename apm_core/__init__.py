"""apm: dataset distillation with proof of its quality.

The public names, one by one. They are loaded when first used: the workflow plans its jobs with the
light modules alone, without waiting for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apm_core.distilled import DistilledSet as DistilledSet
    from apm_core.distilled import load as load
    from apm_core.nets import build as build
    from apm_core.training.recipe import Recipe as Recipe

_HOME = {
    "DistilledSet": "apm_core.distilled",
    "Recipe": "apm_core.training.recipe",
    "build": "apm_core.nets",
    "load": "apm_core.distilled",
}
__all__ = ["DistilledSet", "Recipe", "build", "load"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'apm_core' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
