"""Base classes of the methods' settings, and the registry of methods by name."""

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

from apm_core.settings.names import module_of, names_in
from apm_core.settings.product import ProductChanges
from apm_core.settings.section import Count, Index, Section, setting
from apm_core.settings.training import PoolName, RecipeChanges, RecipeSettings

PACKAGE = "settings.methods"
LabelsOf = Literal["pool", "classes", "own"]  # see MethodSettings
Contradiction = tuple[str, str]
LEARNED = "soft_ce", "learned labels"  # the loss of labels that a method learns


@dataclass(frozen=True)
class Conditions:
    """What a method's settings have to go with.

    Attributes:
        loss: of the recipe; None as `epochs` where no network runs.
        epochs: E of the recipe.
        rounds: R; None: none are run, or it is not known.
    """

    loss: str | None
    epochs: int | None
    rounds: int | None = None


class MethodSettings(Section):
    """The settings of a method.

    Attributes:
        implementation: module below `apm_core.methods` and class of the method.
        pool: the pool of networks that it distils from, if any.
        labels_of: who labels its images: "pool", its teachers when the shards are merged;
            "classes", the class indices; "own", the method itself.
        from_real: whether it takes real images of each class, as many as it makes.
        embeds: whether it reads what the head of a network reads, so that this must be accessible.
        trains: whether networks run while it distils, so that architecture and precision decide
            its result; those that only look at images in plain float32 do not count.
        recipe_keys: of the recipe, those that decide its result if it trains; the others decide how
            networks are trained on the set, no more.
    """

    implementation: ClassVar[str]
    pool: ClassVar[PoolName | None] = None
    from_real: ClassVar[bool] = True
    embeds: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    recipe_keys: ClassVar[frozenset[str]] = frozenset(RecipeSettings.model_fields)
    labels_of: ClassVar[LabelsOf] = "own"

    recipe: RecipeChanges = RecipeChanges()
    tiles: Count | None = setting(None, "images along a side of a stored one; null: distill.tiles")
    product: ProductChanges = ProductChanges()

    @property
    def label_pool(self) -> PoolName | None:
        """The pool that labels the merged set, if one does."""
        return (self.pool or "teachers") if self.labels_of == "pool" else None

    @property
    def files(self) -> list[str]:
        """Files that the shards are made from besides data and pool: inputs of their jobs."""
        return []

    @property
    def epochs_needed(self) -> dict[str, int]:
        """For each setting that selects snapshots of the pool, the last epoch that it selects."""
        return {}

    @property
    def needed_loss(self) -> tuple[str, str] | None:
        """The loss that labels of the method's own need, and what labels these are."""
        return None

    def contradiction(self, conditions: Conditions) -> Contradiction | None:
        """The key of a setting that does not go with the others, and why; None: all fit."""
        if self.needed_loss is None or conditions.loss == self.needed_loss[0]:
            return None
        wanted, labels = self.needed_loss
        return "recipe.loss", f"{conditions.loss} does not go with {labels}: set it to {wanted}"

    @property
    def most_images(self) -> dict[str, int]:
        """For each setting that bounds how many images a class can have, tiles counted singly."""
        return {}


class IterativeSettings(MethodSettings):
    """The settings of a method that distils in rounds.

    Attributes:
        start_keys: the settings that decide what it starts from, where the recipe has no part in
            it; None: all, with the recipe.
    """

    start_keys: ClassVar[frozenset[str] | None] = None

    rounds: Index | None = setting(None, "R: rounds 0 to R are run; null: distill.rounds")
    start_only: bool = setting(
        False, "no rounds: the images that the method starts from, with its labels and recipe"
    )


class LabelledByPool(Section):
    """How teachers label the merged set."""

    labels_of: ClassVar[LabelsOf] = "pool"

    labels: Literal["teacher", "mean"] | None = setting(
        None, "final labels: one teacher's, or the pool's mean; null: distill.labels"
    )
    label_epoch: Index | None = setting(
        None, "labels by teachers as after so many epochs; null: distill.label_epoch"
    )


@cache
def methods() -> dict[str, MethodSettings]:
    """Every method by name, with its default settings."""
    return {name: default for one in _modules() for name, default in one.METHODS.items()}


@cache
def ready_entries() -> dict[str, dict[str, Any]]:
    """Predefined entries by name: a method with changed settings."""
    return {
        name: entry for one in _modules() for name, entry in getattr(one, "ENTRIES", {}).items()
    }


def _modules() -> list[Any]:
    return [module_of(PACKAGE, name) for name in names_in(PACKAGE)]
