"""Generates the reference of all settings: `python -m workflow.reference` writes its files.

workflow/schemas/config.schema.yaml is for editors that check and complete a config;
docs/settings.md is for people.
"""

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from apm_core.settings.method import methods, ready_entries
from apm_core.settings.product import ProductChanges
from apm_core.settings.run import RunSettings
from apm_core.settings.schema import Schema, bounds, resolved, schema_of
from apm_core.settings.section import Section
from apm_core.settings.training import Pool, RecipeChanges, Teachers

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "workflow/schemas/config.schema.yaml"
PAGE = ROOT / "docs/settings.md"
COMMAND = "python -m workflow.reference"
HEAD = f"""# Settings

Every setting of a run, written by `{COMMAND}` from `apm_core/settings/`. A key is set in
a YAML file (`--configfile FILE`, laid over [config.yaml](../config.yaml)) or in the command
(`--config ipc=10 'distill={{"rounds": 100}}'`). Unknown keys are refused. `null` means what the
meaning says.
"""
METHODS = """## methods

Settings of each method, for all entries of `distill.methods` that have it. `recipe` says where the
method's recipe differs from the section [recipe](#recipe), with the same keys.
"""


def schema_text() -> str:
    """The JSON schema of a config, as YAML."""
    dumped = yaml.safe_dump(
        schema_of(RunSettings), sort_keys=False, default_flow_style=None, width=120
    )
    return f"# Written by `{COMMAND}` from apm_core/settings/.\n{dumped}"


def page() -> str:
    """The reference page."""
    root = RunSettings()
    parts = [HEAD, _table(RunSettings, root)]
    for name in RunSettings.model_fields:
        value = getattr(root, name)
        if name == "methods":
            parts += [METHODS, *_methods()]
        elif isinstance(value, Pool) and not isinstance(value, Teachers):
            parts += _pool(name, value)
        elif isinstance(value, Section):
            parts += [f"## {name}", _doc(type(value)), *_tables(type(value), value)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


# sections that repeat the keys of another
CHANGES = {RecipeChanges: "the section recipe", ProductChanges: "distill.product"}


def _tables(kind: type[Section], value: Section, prefix: str = "") -> Iterator[str]:
    """The table of a section, and those of the sections in it."""
    yield _table(kind, value, prefix=prefix)
    for name in kind.model_fields:
        inner = getattr(value, name)
        if isinstance(inner, Section) and type(inner) not in CHANGES:
            yield f"{prefix}{name}: {_doc(type(inner))}"
            yield from _tables(type(inner), inner, f"{prefix}{name}.")


def _table(kind: type[Section], value: Section, *, prefix: str = "") -> str:
    schema = schema_of(kind)
    lines = ["| key | values | default | meaning |", "| --- | --- | --- | --- |"]
    for name, node in schema["properties"].items():
        default = getattr(value, name)
        changes = CHANGES.get(type(default))
        if isinstance(default, Section) and not changes:
            continue
        text = _text(default)
        meaning = node.get("description") or f"where it differs from {changes}"
        cells = (f"`{prefix}{name}`", _values(node, schema), f"`{text}`", meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _values(node: Mapping[str, Any], root: Schema) -> str:
    """The values that a key takes, in words."""
    if "enum" in node:
        return ", ".join(_text(value) for value in node["enum"])
    if "anyOf" in node:
        return " or ".join(_values(option, root) for option in node["anyOf"])
    types = node.get("type") or resolved(node, root).get("type", "object")
    types = [types] if isinstance(types, str) else types
    inner = f" of {_values(node['items'], root)}" if "items" in node else ""
    return ", ".join(filter(None, [" or ".join(types) + inner, bounds(node)]))


def _text(value: Any) -> str:  # noqa: ANN401 - any value of a setting
    if isinstance(value, Section):
        value = value.model_dump(exclude_none=True)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return value if isinstance(value, str) else json.dumps(value).replace('"', "")


def _doc(kind: type[Section]) -> str:
    return inspect.cleandoc(kind.__doc__ or "")


def _pool(name: str, pool: Pool) -> Iterator[str]:
    yield (
        f"## {name}\n\nAs [teachers](#teachers), of their architecture, with these defaults:"
        f" {_differences(pool, Pool())}."
    )
    for key in type(pool).model_fields.keys() - Pool.model_fields.keys():
        inner = getattr(pool, key)
        yield f"{key}: {_doc(type(inner))}"
        yield _table(type(inner), inner, prefix=f"{key}.")


def _methods() -> Iterator[str]:
    kinds: dict[type[Section], list[str]] = {}
    for name, default in methods().items():
        kinds.setdefault(type(default), []).append(name)
    for kind, names in kinds.items():
        first = methods()[names[0]]
        yield f"### {', '.join(names)}"
        yield _doc(kind)
        yield from _tables(kind, first)
        for name in names[1:]:
            yield f"`{name}` has other defaults: {_differences(methods()[name], first)}."
    for name, entry in ready_entries().items():
        yield f"`{name}` is a ready-made entry: `{_text({'name': name, **entry})}`."


def _differences(value: Section, base: Section) -> str:
    pairs = ((key, getattr(value, key), getattr(base, key)) for key in type(base).model_fields)
    return ", ".join(f"`{key}: {_text(own)}`" for key, own, other in pairs if own != other)


def main() -> None:
    """Write both files."""
    SCHEMA.parent.mkdir(exist_ok=True)
    SCHEMA.write_text(schema_text(), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
