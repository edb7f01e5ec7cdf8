"""The settings: their values, their messages, their reference, and the presets."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from apm_core import methods as library
from apm_core.errors import ConfigError
from apm_core.settings.method import methods, ready_entries
from apm_core.settings.names import names_in
from apm_core.settings.plan import Plan
from apm_core.settings.run import RunSettings
from apm_core.settings.schema import schema_of
from apm_core.settings.section import laid_over
from apm_core.settings.training import GROUPS, POOLS, RecipeChanges, RecipeSettings
from workflow import reference

ROOT = Path(__file__).parents[1]
CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text())
CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, "tiny_imagenet": 200, "imagenet": 1000}
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


def nested(changes: dict[str, Any]) -> dict[str, Any]:
    """A config with values at keys such as "teachers.lr"."""
    config: dict[str, Any] = {}
    for key, value in changes.items():
        *sections, last = key.split(".")
        section = config
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
    return config


def refusal(changes: dict[str, Any]) -> str:
    """The message with which the edited config is refused, one line."""
    with pytest.raises(ConfigError) as caught:
        RunSettings.of(laid_over(CONFIG, nested(changes)))
    message = str(caught.value)
    assert "\n" not in message and message.startswith("config: ")
    return message


def all_leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Values of sections by full key."""
    found: dict[str, Any] = {}
    for name in type(value).model_fields:
        inner = getattr(value, name)
        if isinstance(inner, BaseModel):
            found |= all_leaves(inner, f"{prefix}{name}.")
        else:
            found[prefix + name] = inner
    return found


def test_the_default_config_is_the_papers_run_and_short():
    settings = RunSettings.of(CONFIG)
    assert settings == RunSettings()
    assert len((ROOT / "config.yaml").read_text().splitlines()) <= 120


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_are_valid_and_named_as_their_result(path):
    config, first, sized = CONFIG, path.read_text().splitlines()[0], "_ipc" in path.stem
    named = [ROOT / name for name in re.findall(r"presets/\w+\.yaml", first)]
    below = [file for file in named if sized and file != path]  # what it is laid over
    for file in [*below, path]:
        config = laid_over(config, yaml.safe_load(file.read_text()))
    settings = RunSettings.of(config)
    plan = Plan(settings)
    classes = CLASSES[settings.dataset.source or settings.dataset.name]
    for entry in plan.entries:
        told = plan.distill(entry)
        library.build(told)
        assert (told.options.get("batch") or 0) <= plan.shard_ipc * classes
    if sized:
        (name, ipc), dataset = path.stem.rsplit("_ipc", 1), settings.dataset.name
        variant = "Laid over" in first and name.startswith(f"{dataset}_")
        assert variant or name == dataset
        plan.require_target(dataset, ipc)


@pytest.mark.parametrize("name", methods())
def test_every_method_takes_its_default_settings(name):
    settings = RunSettings.of({"distill": {"methods": [name]}, "teachers": {"snapshots": True}})
    method = library.build(Plan(settings).distill(name))
    assert method.key("batch") == f"methods.{name}.batch"


def test_the_schema_and_the_page_are_current():
    for file, text in (
        (reference.SCHEMA, reference.schema_text()),
        (reference.PAGE, reference.page()),
    ):
        assert file.read_text() == text, f"run {reference.COMMAND}"


def test_every_key_is_on_the_page():
    page = reference.PAGE.read_text()
    for key in all_leaves(RunSettings()):
        if key.split(".")[0] not in {*POOLS, "methods"}:
            assert f"`{key}`" in page or f"`{key.split('.', 1)[1]}`" in page, key
    for name in [*methods(), *ready_entries(), *POOLS]:
        assert name in page


def described(node: Any) -> list[dict]:
    """Every key of a JSON schema, at any depth."""
    if isinstance(node, list):
        return [key for child in node for key in described(child)]
    if not isinstance(node, dict):
        return []
    own = [child for child in node.get("properties", {}).values() if isinstance(child, dict)]
    return own + [key for child in node.values() for key in described(child)]


def test_every_key_is_described_and_no_section_takes_others():
    schema = schema_of(RunSettings)
    for node in described(schema):
        assert "$ref" in node or len(node["description"]) > 1, node
    for name, section in schema["$defs"].items():
        assert section["additionalProperties"] is (name == "NamedEntry")
    assert schema["additionalProperties"] is False


def test_defaults_that_a_section_changes_are_all_that_its_schema_repeats():
    schema = schema_of(RunSettings)
    assert schema["properties"]["experts"]["default"] == {
        **{"epochs": 50, "lr": 0.01, "momentum": 0.0, "weight_decay": 0.0, "drop_at": 1.0},
        "snapshots": True,
    }
    assert "default" not in schema["properties"]["recipe"]


def test_a_methods_recipe_has_the_keys_of_the_recipe():
    assert set(RecipeChanges.model_fields) == set(RecipeSettings.model_fields)
    assert all(value is None for value in RecipeChanges().model_dump().values())


def test_groups_of_augmentations_are_those_that_can_be_applied():
    from apm_core.training.augment import OPERATIONS

    assert set(OPERATIONS) == set(GROUPS)


def test_settings_load_without_torch():
    code = "import sys, apm_core.settings.plan; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe.epoch": 3}, "recipe.epoch: there is no such key; did you mean epochs?"),
        ({"teacher": {}}, "teacher: there is no such key; did you mean teachers?"),
        (
            {"distill.zzz": 3},
            "distill.zzz: there is no such key; known here: label_epoch, labels, methods, product,",
        ),
        (
            {"methods.apm.checkpoint": 3},
            "methods.apm.checkpoint: there is no such key; did you mean checkpoints?",
        ),
        (
            {"evaluate.overrides": {"vit": {"epoch": 3}}},
            "evaluate.overrides.vit.epoch: there is no such key; did you mean epochs?",
        ),
        (
            {"teachers.lr": "1e-3"},
            "teachers.lr: '1e-3' is not of type 'number' (YAML reads 1e-3 as text:"
            " write 1.0e-03 with a point); learning rate of SGD, above 0",
        ),
        (
            {"teachers.lr": "fast"},
            "teachers.lr: 'fast' is not of type 'number'; learning rate of SGD, above 0",
        ),
        (
            {"distill.rounds": 2.5},
            "distill.rounds: 2.5 is not of type 'integer'; R: rounds 0 to R are run, at least 0",
        ),
        ({"teachers": None}, "teachers: None is not of type 'object'; Networks trained on"),
        (
            {"methods.apm.logarithm": "perhaps"},
            "methods.apm.logarithm: 'perhaps' is not of type 'boolean'; true: -log of each",
        ),
        ({"ipc": 0}, "ipc: 0 is less than the minimum of 1; images per class"),
        ({"ipc": -3}, "ipc: -3 is less than the minimum of 1; images per class"),
        ({"teachers.lr": 0}, "teachers.lr: 0 is less than or equal to the minimum of 0; learning"),
        ({"recipe.momentum": 1}, "recipe.momentum: 1 is greater than or equal to the maximum of 1"),
        ({"teachers.lr": float("inf")}, "teachers.lr: inf is not a finite number"),
        ({"dataset.source": "mnist"}, "dataset.source: 'mnist' is not one of [None, 'cifar10',"),
        (
            {"dataset.resolution": "x"},
            "dataset.resolution: 'x' is not of type 'integer', 'null'; pixels per side",
        ),
        (
            {"distill.methods": ["mm"]},
            "distill.methods.0: there is no method 'mm'; known here: apm, apm_plus,",
        ),
        ({"distill.methods": ["apn"]}, "distill.methods.0: there is no method 'apn'; did you mean"),
        ({"distill.methods": []}, "distill.methods: [] should be non-empty; entries to compare"),
        (
            {"distill.methods": ["apm", "apm"]},
            "distill.methods.1: a second entry has the name 'apm'",
        ),
        (
            {"distill.methods": [{"name": "mine", "method": "apm", "rond": 3}]},
            "distill.methods.0.rond: there is no such key; did you mean rounds?",
        ),
        (
            {"distill.methods": [{"name": "mine", "method": "apm", "ce": "much"}]},
            "distill.methods.0.ce: 'much' is not of type 'number'; weight of the teacher's",
        ),
        (
            {"distill.methods": [{"name": "whitening", "method": "apm"}]},
            "distill.methods.0.name: 'whitening' is the name of another file: choose another",
        ),
        (
            {"evaluate.architectures": ["vit", "resnet50"]},
            "evaluate.architectures.1: 'resnet50' is not one of ['alexnet', 'convnet',",
        ),
        (
            {"evaluate.overrides": {"resnet50": {}}},
            "evaluate.overrides: 'resnet50' is not one of ['alexnet', 'convnet',",
        ),
        ({"teachers.augment": "crop_blur"}, "teachers.augment: 'crop_blur' does not match"),
        ({"compute.compile": True}, "compute.compile: True is not one of ['auto', 'on', 'off'];"),
        ({"compute.device": "gpu"}, "compute.device: 'gpu' does not match"),
        ({"dataset.name": "a__b"}, "dataset.name: 'a__b' does not match"),
        ({"nas.networks": 2}, "nas.networks: 2 cannot be ranked: 0 for no ranking, else at least"),
        ({"ipc": 10, "distill.shards": 3}, "distill.shards: 3 does not divide ipc: 10"),
        (
            {"teachers.n": 25},
            "teachers.n: 25 is not a multiple of teachers.per_job: 10",
        ),
        (
            {"distill.methods": ["mtt"], "methods.mtt.start_below": 50},
            "methods.mtt.start_below: it needs networks as after epoch 51, beyond experts.epochs:",
        ),
        (
            {"distill.methods": ["datm"], "flat_experts.epochs": 40},
            "methods.datm.start_below: it needs networks as after epoch 41, beyond"
            " flat_experts.epochs: 40: lower the one or raise the other",
        ),
        (
            {"distill.methods": ["apm_plus"], "aligned_teachers.epochs": 3},
            "methods.apm_plus.teacher_epochs: it needs networks as after epoch 4, beyond aligned",
        ),
        (
            {"distill.methods": ["cad"], "teachers": {"epochs": 11, "snapshots": True}},
            "methods.cad.window: it needs networks as after epoch 12, beyond teachers.epochs: 11:",
        ),
        (
            {"distill.methods": ["herding", {"name": "early", "method": "el2n"}]},
            "distill.methods.1.epoch: it needs networks as after epoch 10: set teachers.snapshots:",
        ),
        (
            {"evaluate.overrides": {"alexnet": {"epochs": 3}}},
            "evaluate.overrides.alexnet: it is not evaluated: add it to evaluate.architectures",
        ),
        (
            {
                "evaluate.ceiling.architectures": ["alexnet"],
                "evaluate.overrides": {"alexnet": {"epochs": 3}},
            },
            "evaluate.overrides.alexnet.epochs: no alexnet is trained by the recipe of a set: add",
        ),
        (
            {
                "evaluate.kd.architectures": ["alexnet"],
                "evaluate.overrides": {"alexnet": {"networks": 3, "lr": 1.0}},
            },
            "evaluate.overrides.alexnet.lr: no alexnet is trained by the recipe of a set: add it",
        ),
        (
            {"evaluate.overrides": {"vit": {"optimizer": "adam"}}},
            "evaluate.overrides.vit.optimizer: adam needs a learning rate of its own, that of",
        ),
        (
            {"distill.methods": ["ncfm", "dm"], "evaluate.overrides": {"vit": {"lr": 0.1}}},
            "evaluate.overrides.vit.lr: one rate does not suit the optimizers of all sets (adam",
        ),
        (
            {"distill.methods": ["ncfm"], "evaluate.overrides": {"vit": {"optimizer": "sgd"}}},
            "evaluate.overrides.vit.optimizer: sgd needs a learning rate of its own, that of ncfm",
        ),
        (
            {"distill.methods": [{"name": "random", "labels": "classes"}]},
            "distill.methods.0.recipe.loss: l1 does not go with labels that are class indices:"
            " set it to ce",
        ),
        (
            {"distill.methods": ["apm"], "methods": {"apm": {"recipe": {"loss": "ce"}}}},
            "methods.apm.recipe.loss: ce does not go with labels that are logits: set it to one",
        ),
        ({"evaluate": {True: 1}}, "evaluate.True: there is no such key"),
        (
            {"distill.methods": [{"name": "apm", True: 1}]},
            "distill.methods.0.True: a key is text: write it in quotes, or correct it",
        ),
        (
            {"distill.methods": ["apm", {"method": "apm"}]},
            "distill.methods.1: 'name' is a required property; An entry with a name",
        ),
        (
            {"distill.methods": [{"name": "A-B", "method": "apm"}]},
            "distill.methods.0.name: 'A-B' does not match '^[a-z][a-z0-9_]*$'; names the files",
        ),
        ({"distill.methods": [5]}, "distill.methods.0: 5 is not of type 'string' or 'object'"),
        (
            {"distill.methods": [{"name": "apm", "checkpoints": 7}]},
            "distill.methods.0.checkpoints: 7 does not divide recipe.epochs: 250",
        ),
        (
            {"distill.methods": [{"name": "apm_plus", "teacher_epochs": [4, 2]}]},
            "distill.methods.0.teacher_epochs: 4 is after 2: swap them",
        ),
        (
            {"distill.methods": [{"name": "few", "method": "bptt", "recipe": {"loss": "l1"}}]},
            "distill.methods.0.recipe.loss: l1 does not go with learned labels: set it to soft_ce",
        ),
        (
            {"distill.methods": [{"name": "tesla", "soft_labels": True}]},
            "distill.methods.0.recipe.loss: ce does not go with soft_labels: true: set it to"
            " soft_ce",
        ),
        ({"distill.methods": [{"name": "at_bptt", "spread": 50}]}, "distill.methods.0.spread: 50"),
        (
            {"distill.methods": [{"name": "datm", "start_from": 50}]},
            "distill.methods.0.start_from: 50",
        ),
        (
            {
                "distill.methods": [
                    {
                        "name": "apm_plus",
                        "rounds": 0,
                        "unrolled": {"rounds": 5},
                        "recipe": {"loss": "soft_ce"},
                    }
                ],
                "aligned_teachers.snapshots": True,
            },
            "distill.methods.0.unrolled.rounds: 5 leaves no round to match",
        ),
        (
            {"distill.methods": ["apm", "random"], "distill.label_epoch": 4},
            "distill.label_epoch: it needs networks as after epoch 4: set teachers.snapshots: true",
        ),
        (
            {"distill.methods": [{"name": "apm", "label_epoch": 400}]},
            "distill.methods.0.label_epoch: it needs networks as after epoch 400, beyond teachers",
        ),
        (
            {"evaluate.overrides": {"vit": {"loss": "ce"}}},
            "evaluate.overrides.vit.loss: 'ce' is not one of [None, 'l1', 'soft_ce']",
        ),
        (
            {"nas.reference.source": "table", "nas.reference.column": "x"},
            "nas.reference.table: needed with source: table",
        ),
        (
            {"nas.reference.source": "table", "nas.reference.table": "x"},
            "nas.reference.column: needed with source: table",
        ),
        ({"dataset.name": "pets"}, "dataset.source: null means dataset.name, and 'pets' is none"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_config_is_refused_in_one_line_that_names_the_key(changes, message):
    assert refusal(changes).startswith("config: " + message)


def test_a_long_value_is_cut():
    assert len(refusal({"seed": "x" * 10_000})) < 700


def test_text_of_the_command_line_is_read_as_what_it_says():
    # Snakemake hands over what is nested in --config as text
    settings = RunSettings.of(
        {
            "distill": {"rounds": "3", "methods": ["apm"]},
            "teachers": {"lr": "0.1", "snapshots": "true"},
            "dataset": {"resolution": "null", "source": "null"},
            "methods": {"dm": {"recipe": {"loss": "null"}}},
            "evaluate": {
                "rates": ["0.5", "1.0"],
                "overrides": {"vit": {"epochs": "7"}, "alexnet": "null"},
            },
            "compute": {"compile": "off"},
        }
    )
    assert settings.distill.rounds == 3 and settings.teachers.lr == 0.1
    assert settings.teachers.snapshots is True and settings.dataset.resolution is None
    assert settings.dataset.source is None and settings.methods.dm.recipe.loss is None
    assert settings.evaluate.overrides["vit"].epochs == 7
    assert settings.evaluate.overrides["alexnet"] is None
    assert settings.evaluate.rates == [0.5, 1.0] and settings.compute.compile == "off"


def test_a_number_spelled_otherwise_is_the_same():
    assert RunSettings.of({"distill": {"rounds": 3.0}}).distill.rounds == 3


def test_one_changed_key_of_a_methods_recipe_leaves_the_others():
    settings = RunSettings.of({"methods": {"dm": {"recipe": {"lr": 0.3}}}})
    recipe = settings.methods.dm.recipe
    assert (recipe.lr, recipe.loss, recipe.drop_momentum) == (0.3, "ce", True)


def entries(*items: Any, **config: Any) -> dict[str, Any]:
    return RunSettings.of({"distill": {"methods": list(items)}, **config}).entries


def test_an_entry_has_its_methods_settings_and_what_differs():
    found = entries(
        "apm", {"name": "apm_2", "method": "apm", "ce": 7.0}, methods={"apm": {"period": 9}}
    )
    assert list(found) == ["apm", "apm_2"]
    apm, mine = found["apm"], found["apm_2"]
    assert (mine.method, mine.settings.ce, mine.settings.period) == ("apm", 7.0, 9)
    assert apm.settings.ce == 0.1 and apm.settings.period == 9


def test_an_entry_follows_an_earlier_one():
    found = entries(
        {
            **{"name": "mine", "method": "apm_plus", "ce": 7.0, "unrolled": {"rounds": 3}},
            "recipe": {"loss": "soft_ce"},
        },
        {"name": "control", "method": "mine", "start_only": True},
    )
    control = found["control"].settings
    assert (control.ce, control.unrolled.rounds, control.start_only) == (7.0, 3, True)
    assert control.unrolled.window == 40 and found["mine"].settings.start_only is False


def test_ready_made_entries_can_be_changed():
    found = entries("random_plus", {"name": "random_hard", "recipe": {"lr": 0.3}})
    assert found["random_plus"].settings == methods()["apm_plus"].changed({"start_only": True})
    hard = found["random_hard"].settings
    assert (hard.labels, hard.recipe.lr, hard.recipe.loss) == ("classes", 0.3, "ce")


def test_names_of_things_are_those_of_modules():
    assert "convnet" in names_in("nets.architectures") and "l1" in names_in("training.losses")
    assert {"apm", "dsa", "tesla", "random"} <= set(methods())


def test_a_ranking_that_is_off_needs_no_table():
    RunSettings.of({"nas": {"networks": 0, "reference": {"source": "table"}}})
