"""Settings of coresets: real images selected by what trained networks say about them."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from apm_core.settings.method import Conditions, Contradiction
from apm_core.settings.methods.random import HARD, RealImagesSettings
from apm_core.settings.section import Count, Index, setting
from apm_core.settings.training import PoolName

Several = Annotated[int, Field(ge=2)]


class CoresetSettings(RealImagesSettings):
    """What every coreset has."""

    pool: ClassVar[PoolName | None] = "teachers"

    networks: Count = setting(
        1, "the first so many of the pool, at most all, whose embeddings are joined"
    )


class HerdingSettings(CoresetSettings):
    """Herding (Welling, ICML 2009): images whose mean embedding is that of their class."""

    implementation: ClassVar[str] = "selection.greedy:Herding"


class KCenterSettings(CoresetSettings):
    """Greedy k-center (Sener & Savarese, ICLR 2018): images that cover those of their class."""

    implementation: ClassVar[str] = "selection.greedy:KCenter"


class ScoreSettings(CoresetSettings):
    """What every coreset by a score has."""

    networks: Count = setting(
        10, "the first so many of the pool, at most all, whose scores are averaged"
    )
    take: Literal["lowest", "middle", "highest"] = setting(
        "lowest", "which scores of a class come first; middle: those around its median"
    )


class EL2NSettings(ScoreSettings):
    """The error of early predictions (EL2N; Paul et al., NeurIPS 2021)."""

    implementation: ClassVar[str] = "selection.scored:EL2N"

    epoch: Index = setting(10, "networks as after so many epochs; needs teachers.snapshots")

    @property
    def epochs_needed(self) -> dict[str, int]:
        """The epoch of the scores."""
        return {"epoch": self.epoch}


class GraNdSettings(EL2NSettings):
    """The norm of early gradients (GraNd; Paul et al., NeurIPS 2021), those of the last layer."""

    implementation: ClassVar[str] = "selection.scored:GraNd"
    embeds: ClassVar[bool] = True


class ForgettingSettings(ScoreSettings):
    """How often networks forget what they classified correctly (Toneva et al., ICLR 2019)."""

    implementation: ClassVar[str] = "selection.scored:Forgetting"

    epochs: Several = setting(50, "the first so many are watched; needs teachers.snapshots")

    @property
    def epochs_needed(self) -> dict[str, int]:
        """The last epoch that is watched."""
        return {"epochs": self.epochs}


class CADSettings(ScoreSettings):
    """How much the probability of an image's class varies around the epochs that the training on
    the coreset amounts to (CAD-Prune, arXiv:2604.18811).
    """

    implementation: ClassVar[str] = "selection.scored:CAD"

    window: Annotated[list[Count], Field(min_length=2, max_length=2)] = setting(
        [5, 10], "first and last epoch at which the J begin; needs teachers.snapshots"
    )
    successive: Several = setting(3, "J: successive epochs of a standard deviation")

    def contradiction(self, conditions: Conditions) -> Contradiction | None:
        """Also a window that ends before it begins."""
        first, last = self.window
        if first > last:
            return "window", f"{first} is after {last}: swap them"
        return super().contradiction(conditions)

    @property
    def epochs_needed(self) -> dict[str, int]:
        """The last epoch of the last standard deviation."""
        return {"window": max(self.window) + self.successive - 1}


METHODS = {
    "herding": HerdingSettings(),
    "k_center": KCenterSettings(),
    "el2n": EL2NSettings(),
    "grand": GraNdSettings(),
    "forgetting": ForgettingSettings(),
    "cad": CADSettings(take="highest"),
}
ENTRIES = {f"{name}_hard": {"method": name, **HARD} for name in METHODS}
