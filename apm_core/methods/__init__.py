"""The distillation methods, imported only when one is built: this module is light to import."""

from importlib import import_module
from typing import TYPE_CHECKING

from apm_core.settings.stages import DistillSettings

if TYPE_CHECKING:
    from apm_core.methods.base import Method, OneShot


def build(settings: DistillSettings) -> "Method | OneShot":
    """Build the method that the settings of a shard name."""
    from apm_core.training.recipe import Recipe

    own = settings.own
    module, name = own.implementation.split(":")
    method = getattr(import_module(f"apm_core.methods.{module}"), name)
    recipe = Recipe.of(settings.recipe) if settings.recipe else None
    return method(own, name=settings.method, recipe=recipe)
