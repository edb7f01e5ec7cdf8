"""Settings of a set that was made elsewhere."""

from typing import ClassVar

from apm_core.settings.method import MethodSettings
from apm_core.settings.section import setting


class ImportedSettings(MethodSettings):
    """A distilled set from a file, such as one that `apm import` made of a published set: measured
    as the others are, with its own labels and the recipe of the entry.
    """

    implementation: ClassVar[str] = "imported:Imported"
    from_real: ClassVar[bool] = False
    trains: ClassVar[bool] = False

    file: str = setting("sets/imported.zarr.zip", "a distilled set with the run's ipc and classes")

    @property
    def files(self) -> list[str]:
        """The set."""
        return [self.file]


METHODS = {"imported": ImportedSettings()}
