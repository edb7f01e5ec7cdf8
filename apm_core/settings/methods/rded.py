"""Settings of RDED: views of real images that a teacher recognises."""

from typing import ClassVar

from apm_core.settings.methods.random import HARD, RealImagesSettings
from apm_core.settings.section import Count, setting
from apm_core.settings.training import PoolName


class RDEDSettings(RealImagesSettings):
    """Views of real images that teachers recognise best (RDED; Sun et al., CVPR 2024)."""

    implementation: ClassVar[str] = "selection.rded:RDED"
    pool: ClassVar[PoolName | None] = "teachers"

    candidates: Count = setting(
        300, "training images of a class that are looked at; no more images are made of it"
    )
    crops: Count = setting(5, "random views of each, of which one is kept")
    networks: Count = setting(
        1, "the first so many of the pool, at most all, whose losses are averaged"
    )

    @property
    def most_images(self) -> dict[str, int]:
        """A view of each candidate."""
        return {"candidates": self.candidates}


METHODS = {"rded": RDEDSettings()}
ENTRIES = {"rded_hard": {"method": "rded", **HARD}}
