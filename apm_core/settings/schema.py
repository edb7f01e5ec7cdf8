"""The JSON schema of the settings, and the one-line messages of configs that violate it."""

import difflib
import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from apm_core.errors import ConfigError

LONGEST = 400  # characters of a message about one value
BOUNDS = {  # in words
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}
Schema = dict[str, Any]


class _Generator(GenerateJsonSchema):
    """Generates schemas without titles, with null as one more type or value, not as an anyOf."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ANN401, ARG002 - pydantic's
        return False

    def nullable_schema(self, schema: Any) -> JsonSchemaValue:  # noqa: ANN401
        inner = self.generate_inner(schema["schema"])
        if "enum" in inner:
            return {"enum": [None, *inner["enum"]]}
        return (
            {**inner, "type": [inner["type"], "null"]}
            if "type" in inner
            else super().nullable_schema(schema)
        )

    def literal_schema(self, schema: Any) -> JsonSchemaValue:  # noqa: ANN401
        return {"enum": super().literal_schema(schema).get("enum", list(schema["expected"]))}


@cache
def schema_of(model: type[BaseModel]) -> Schema:
    """The JSON schema of `model`, its shared definitions under $defs."""
    schema = model.model_json_schema(schema_generator=_Generator)
    for section in (schema, *schema.get("$defs", {}).values()):
        section.pop("title", None)
        for node in section.get("properties", {}).values():
            if "$ref" in node and "default" in node:
                node["default"] = _different(node["default"], resolved(node, schema), schema)
                if not node["default"]:
                    del node["default"]
    return schema


def _different(value: Mapping[str, Any], node: Mapping[str, Any], root: Schema) -> dict[str, Any]:
    """The items of a section's default `value` that differ from the defaults of its fields."""
    differences = {}
    for key, item in value.items():
        field = node["properties"][key]
        if "$ref" in field:
            inner = _different(item, resolved(field, root), root)
            item, default = inner, {}
        else:
            default = field.get("default")
        if item != default:
            differences[key] = item
    return differences


def check(config: Any, model: type[BaseModel], *place: str) -> Any:  # noqa: ANN401 - JSON values
    """Check `config` against the schema of `model` and return it.

    Text that YAML reads as a number, a boolean or null is converted where the schema has such a
    type: Snakemake passes nested values of --config as text.

    Raises ConfigError, one line that names the key below `place`, for the first violation.
    """
    schema = schema_of(model)
    config = _read(config, schema, schema)
    errors = sorted(Draft202012Validator(schema).iter_errors(config), key=lambda e: list(e.path))
    if errors:
        raise ConfigError(_one_line(_innermost(errors[0]), place))
    for path, value in _inside(config, *place):
        key = ".".join(map(str, path))
        if not isinstance(path[-1], str):
            raise ConfigError(f"config: {key}: a key is text: write it in quotes, or correct it")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"config: {key}: {value} is not a finite number")
    return config


def bounds(schema: Mapping[str, Any]) -> str:
    """The bounds of a value in words, such as "at least 0, below 1"."""
    return ", ".join(text.format(schema[key]) for key, text in BOUNDS.items() if key in schema)


def resolved(node: Mapping[str, Any], root: Schema) -> Mapping[str, Any]:
    """The schema that `node` is or refers to."""
    reference = node.get("$ref")
    return root["$defs"][reference.rsplit("/", 1)[-1]] if reference else node


def _read(value: Any, node: Mapping[str, Any], root: Schema) -> Any:  # noqa: ANN401
    forms = [resolved(form, root) for form in node.get("anyOf", [node])]
    node = forms[0] if len(forms) == 1 else {}
    if isinstance(value, Mapping):
        node = next((form for form in forms if form.get("type") == "object"), node)
        own, other = node.get("properties", {}), node.get("additionalProperties")
        other = other if isinstance(other, Mapping) else {}
        return {key: _read(item, own.get(key, other), root) for key, item in value.items()}
    if isinstance(value, list):
        return [_read(item, node.get("items", {}), root) for item in value]
    told = [form.get("type", []) for form in forms]
    types = {name for one in told for name in ([one] if isinstance(one, str) else one)}
    choices = node.get("enum", [])
    if not isinstance(value, str) or value in choices or "string" in types:
        return value
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    fits = not isinstance(parsed, str) if types else parsed in choices
    return parsed if fits else value


def _inside(value: Any, *path: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:  # noqa: ANN401
    """The path and the value of all that `value` holds, at any depth."""
    if isinstance(value, Mapping | list):
        numbered = ((str(number), item) for number, item in enumerate(value))
        for key, item in value.items() if isinstance(value, Mapping) else numbered:
            yield (*path, key), item
            yield from _inside(item, *path, key)


def _innermost(error: Any) -> Any:  # noqa: ANN401 - a ValidationError
    """What is wrong with the form that a value of several forms has, where its type tells which."""
    inside = [one for one in error.context or () if one.validator != "type" or one.path]
    return _innermost(inside[0]) if inside else error


def _one_line(error: Any, place: tuple[str, ...]) -> str:  # noqa: ANN401 - a ValidationError
    key = ".".join([*place, *(str(part) for part in error.absolute_path)])
    if error.validator == "additionalProperties":
        keys = sorted(error.schema.get("properties", {}))
        unknown = next(name for name in error.instance if name not in keys)
        full = f"{key}.{unknown}" if key else unknown
        return f"config: {full}: there is no such key; {hint(str(unknown), keys)}"
    reason = error.message
    if error.context:
        types = " or ".join(repr(one.validator_value) for one in error.context)
        reason = f"{error.instance!r} is not of type {types}"
    if len(reason) > LONGEST:  # it quotes the value
        reason = f"{reason[: LONGEST // 2]} ... {reason[-LONGEST // 2 :]}"
    message = f"config: {key}: {reason}"
    value = error.instance
    if error.validator == "type" and isinstance(value, str) and _is_number(value):
        message += f" (YAML reads {value} as text: write {float(value):.1e} with a point)"
    # a section's description is its docstring: only the first line is shown
    description = error.schema.get("description", "").partition("\n")[0]
    meaning = ", ".join(filter(None, [description, bounds(error.schema)]))
    return message + (f"; {meaning}" if meaning else "")


def hint(unknown: str, names: list[str]) -> str:
    """The name most like `unknown` as a question, or the list of all `names`."""
    close = difflib.get_close_matches(unknown, names, n=1)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(names)}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
