"""The base class of all sections of the settings, and the types of bounded numbers."""

from collections.abc import Mapping
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, create_model

Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Above = Annotated[float, Field(gt=0)]  # zero
AtLeast = Annotated[float, Field(ge=0)]  # zero
BelowOne = Annotated[float, Field(ge=0, lt=1)]  # zero to below one


class Section(BaseModel):
    """One group of settings: immutable, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """A copy with `changes` merged in, section by section; pydantic validates the result."""
        return type(self).model_validate(laid_over(self.model_dump(), changes))


def setting(default: Any, meaning: str) -> Any:  # noqa: ANN401 - the type stands at the field
    """A field with its default and a one-line description."""
    return Field(default, description=meaning)


def changes_of(section: type[Section], name: str, meaning: str) -> type[Section]:
    """A section `name` of the same fields, null where they are as in `section`."""
    fields = {}
    for key, field in section.model_fields.items():
        kind = field.annotation
        if type(None) not in get_args(kind):
            kind = Annotated[(kind, Field(), *field.metadata)] | None
        fields[key] = (kind, setting(None, field.description))
    return create_model(name, __base__=Section, __doc__=meaning, **fields)


def laid_over(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` updated by `changes` recursively, as Snakemake merges config files."""
    result = dict(base)
    for key, value in changes.items():
        below = result.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        result[key] = laid_over(below, value) if both else value
    return result
