"""What all sections of the settings share."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Above = Annotated[float, Field(gt=0)]  # zero
AtLeast = Annotated[float, Field(ge=0)]  # zero
BelowOne = Annotated[float, Field(ge=0, lt=1)]  # zero to below one


class Section(BaseModel):
    """Settings that belong together. They never change, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """These settings with `changes` laid over them, section by section."""
        return type(self).model_validate(laid_over(self.model_dump(), changes))


def setting(default: Any, meaning: str) -> Any:  # noqa: ANN401 - the type stands at the field
    """A field with its default and its meaning in one line."""
    return Field(default, description=meaning)


def laid_over(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` over `base`, as Snakemake lays one config file over another."""
    result = dict(base)
    for key, value in changes.items():
        below = result.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        result[key] = laid_over(below, value) if both else value
    return result
