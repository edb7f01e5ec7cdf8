"""The config: its schema, its messages, and which stage depends on which key."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from plan import ALGORITHM, WITH_WIDTH, Plan, check_schema
from snakemake.utils import validate

from apm_core import methods
from apm_core.errors import ConfigError
from apm_core.settings.names import names_in

ROOT = Path(__file__).parents[1]
CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text())
SCHEMA_FILE = ROOT / "workflow/schemas/config.schema.yaml"
SCHEMA = yaml.safe_load(SCHEMA_FILE.read_text())
CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, "tiny_imagenet": 200, "imagenet": 1000}
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))
ALL = {
    "prepare",
    "teachers",
    "aligned_teachers",
    "experts",
    "flat_experts",
    "distill",
    "merge",
    "evaluate",
    "ceiling",
    "nas_proxy",
    "nas_reference",
    "nas",
}
POOLS = {"teachers", "aligned_teachers", "experts", "flat_experts"}  # one stage
TRAINED = POOLS | {"distill", "evaluate", "ceiling", "nas_proxy", "nas_reference"}


def merged(base: dict, changes: dict) -> dict:
    """`changes` over `base`, as Snakemake lays one config file over another."""
    result = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if nested else value
    return result


def edited(changes: dict[str, Any], config: dict = CONFIG) -> dict:
    """The config with other values at keys such as "teachers.lr"."""
    result = copy.deepcopy(config)
    for key, value in changes.items():
        *sections, last = key.split(".")
        section = result
        for name in sections:
            section = section[name]
        section[last] = value
    return result


def leaves(section: dict, prefix: str = "") -> dict[str, Any]:
    """Values by full key; an empty section counts as a value."""
    found = {}
    for name, value in section.items():
        if isinstance(value, dict) and value:
            found |= leaves(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def schema_leaves(node: dict, prefix: str = "") -> dict[str, dict]:
    found = {}
    for name, child in node.get("properties", {}).items():
        if child.get("properties"):
            found |= schema_leaves(child, f"{prefix}{name}.")
        else:
            found[prefix + name] = child
    return found


def schema_nodes(node: Any) -> list[dict]:
    """Every description of a key, at any depth."""
    if isinstance(node, list):
        return [found for child in node for found in schema_nodes(child)]
    if not isinstance(node, dict):
        return []
    own = list(node.get("properties", {}).values())
    return own + [found for child in node.values() for found in schema_nodes(child)]


CONFIG_LEAVES, SCHEMA_LEAVES = leaves(CONFIG), schema_leaves(SCHEMA)


def refusal(changes: dict[str, Any]) -> str:
    """The message with which the edited config is refused, one line."""
    with pytest.raises(ConfigError) as caught:
        check_schema(edited(changes), SCHEMA)
        Plan(edited(changes))
    message = str(caught.value)
    assert "\n" not in message and message.startswith("config: ")
    return message


def test_the_default_config_is_valid():
    check_schema(CONFIG, SCHEMA)
    Plan(CONFIG)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_are_valid_and_named_as_their_result(path):
    config, base = CONFIG, path.with_stem(path.stem.rsplit("_ipc", 1)[0])
    for file in [base, path] if base in PRESETS and base != path else [path]:
        config = merged(config, yaml.safe_load(file.read_text()))
    check_schema(config, SCHEMA)
    filled = copy.deepcopy(config)
    validate(filled, str(SCHEMA_FILE))
    assert filled == config  # a preset over config.yaml says everything: the schema adds nothing
    plan = Plan(edited({"distill.methods": list(methods.METHODS)}, config))
    classes = CLASSES[config["dataset"]["source"] or config["dataset"]["name"]]
    for method in plan.methods:
        settings = json.loads(plan.distill(method))
        methods.build(method, settings)
        assert (settings["options"].get("batch") or 0) <= plan.shard_ipc * classes
    if "_ipc" in path.stem:
        plan.check_target(*path.stem.rsplit("_ipc", 1))


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_takes_its_default_settings(method):
    methods.build(method, json.loads(Plan(CONFIG).distill(method)))


def test_config_and_schema_have_the_same_keys_and_defaults():
    assert set(CONFIG_LEAVES) == set(SCHEMA_LEAVES)
    for key, value in CONFIG_LEAVES.items():
        default = SCHEMA_LEAVES[key]["default"]
        assert (default, type(default)) == (value, type(value)), key


def test_every_key_is_described_and_no_section_takes_others():
    for node in schema_nodes(SCHEMA):
        assert len(node["description"]) > 5
        if node.get("type") == "object":
            assert node.get("additionalProperties") is not None
    assert SCHEMA["additionalProperties"] is False


def test_the_schema_knows_the_methods_and_architectures():
    from apm_core import nets

    assert nets.takers("width") == WITH_WIDTH
    known = list(names_in("nets.architectures"))
    assert set(SCHEMA_LEAVES["distill.methods"]["items"]["enum"]) == set(methods.METHODS)
    own = {name for name, known in methods.METHODS.items() if known.control_of is None}
    assert set(CONFIG["methods"]) == own
    for key in ("architectures", "hard_labels", "plain", "ceiling.architectures"):
        assert sorted(SCHEMA_LEAVES[f"evaluate.{key}"]["items"]["enum"]) == known
    assert sorted(SCHEMA_LEAVES["evaluate.overrides"]["propertyNames"]["enum"]) == known
    assert sorted(SCHEMA_LEAVES["teachers.network"]["enum"]) == known


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe.epoch": 3}, "recipe.epoch: there is no such key; did you mean epochs?"),
        ({"teacher": {}}, "teacher: there is no such key; did you mean teachers?"),
        (
            {"distill.zzz": 3},
            "distill.zzz: there is no such key; known here: label_epoch, labels, methods, rounds,",
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
            "distill.rounds: 2.5 is not of type 'integer'; R, at least 0: rounds 0 to R are run",
        ),
        ({"teachers": None}, "teachers: None is not of type 'object'; networks trained on"),
        (
            {"methods.apm.logarithm": "no"},
            "methods.apm.logarithm: 'no' is not of type 'boolean'; true: Eq. 4's logarithm",
        ),
        ({"ipc": 0}, "ipc: 0 is less than the minimum of 1; images per class, an integer of at"),
        ({"ipc": -3}, "ipc: -3 is less than the minimum of 1; images per class"),
        ({"teachers.lr": 0}, "teachers.lr: 0 is less than or equal to the minimum of 0; learning"),
        ({"recipe.momentum": 1}, "recipe.momentum: 1 is greater than or equal to the maximum of 1"),
        ({"dataset.source": "mnist"}, "dataset.source: 'mnist' is not one of [None, 'digits',"),
        (
            {"distill.methods": ["mm"]},
            "distill.methods.0: 'mm' is not one of ['apm', 'apm_plus', 'dm',",
        ),
        ({"distill.methods": []}, "distill.methods: [] should be non-empty; methods to run"),
        (
            {"evaluate.architectures": ["vit", "resnet50"]},
            "evaluate.architectures.1: 'resnet50' is not one of ['convnet', 'alexnet',",
        ),
        (
            {"evaluate.overrides": {"resnet50": {}}},
            "evaluate.overrides: 'resnet50' is not one of ['convnet', 'alexnet',",
        ),
        ({"teachers.augment": "crop_blur"}, "teachers.augment: 'crop_blur' does not match"),
        ({"compute.compile": True}, "compute.compile: True is not one of ['auto', 'on', 'off'];"),
        ({"compute.device": "gpu"}, "compute.device: 'gpu' does not match"),
        ({"dataset.name": "a__b"}, "dataset.name: 'a__b' does not match"),
        ({"nas.networks": 2}, "nas.networks: 2 is not valid under any of the given schemas; arch"),
        ({"ipc": 10, "distill.shards": 3}, "distill.shards: 3 does not divide ipc: 10"),
        (
            {"teachers.n": 25},
            "teachers.n: 25 is not a multiple of teachers.per_job: 10",
        ),
        (
            {"distill.methods": ["mtt"], "methods.mtt.start_below": 50},
            "methods.mtt.start_below: from epoch 49, 2 epochs on, is beyond experts.epochs: 50",
        ),
        (
            {"distill.methods": ["datm"], "flat_experts.epochs": 40},
            "methods.datm.start_below: from epoch 39, 2 epochs on, is beyond flat_experts.epochs:"
            " 40: lower the one or raise the other",
        ),
        (
            {"evaluate.overrides": {"alexnet": {"epochs": 3}}},
            "evaluate.overrides: alexnet is not in evaluate.architectures",
        ),
        (
            {"evaluate.overrides": {"vit": {"width": 3}}},
            "evaluate.overrides.vit.width: convnet and resnet18 alone can be made narrower",
        ),
        (
            {"nas.reference.source": "table", "nas.reference.column": "x"},
            "nas.reference.table: needed with source: table",
        ),
        (
            {"nas.reference.source": "table", "nas.reference.table": "x"},
            "nas.reference.column: needed with source: table",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_config_is_refused_in_one_line_that_names_the_key(changes, message):
    assert refusal(changes).startswith("config: " + message)


def test_a_method_unknown_to_the_library_is_refused():
    with pytest.raises(ConfigError, match="there is no method 'mm'; known: apm, apm_plus, dm"):
        Plan(edited({"distill.methods": ["apm", "mm"]}))


@pytest.mark.parametrize("method", ["mtt", "tesla", "ftd", "datm"])
def test_experts_of_as_many_epochs_as_needed_are_enough(method):
    pool = methods.entry(method).needs
    needed = CONFIG["methods"][method]["start_below"] - 1 + 2
    changes = {"distill.methods": [method], f"{pool}.epochs": needed}
    Plan(edited(changes))
    assert f"beyond {pool}.epochs" in refusal({**changes, f"{pool}.epochs": needed - 1})
    Plan(edited({**changes, "distill.methods": ["apm"], f"{pool}.epochs": 1}))


def test_a_ranking_that_is_off_needs_no_table():
    config = edited({"nas.networks": 0, "nas.reference.source": "table"})
    check_schema(config, SCHEMA)
    Plan(config)


# key: (another value, stages whose settings change)
EDITS: dict[str, tuple[Any, set[str]]] = {
    "seed": (1, ALL),
    "ipc": (20, {"distill"}),
    "dataset.name": ("cifar100", {"prepare"}),
    "dataset.source": ("digits", {"prepare"}),
    "dataset.data_dir": ("elsewhere", {"prepare"}),
    "dataset.resolution": (16, {"prepare"}),
    "dataset.channels": (1, {"prepare"}),
    "dataset.fit": ("crop", {"prepare"}),
    "dataset.test_fraction": (0.3, {"prepare"}),
    "dataset.held_out": (0.1, {"prepare"}),
    "dataset.whitening": ("none", {"prepare"}),
    "dataset.zca_eps": (0.2, {"prepare"}),
    "compute.device": ("cpu", set()),
    "compute.precision": ("float32", TRAINED),
    "compute.compile": ("off", set()),
    "compute.segment": (100, set()),
    "compute.memory_gb": (2, set()),
    "compute.gpu_memory_gb": (2, set()),
    "compute.threads": (2, set()),
    "compute.resume_interval": (1, set()),
    "teachers.network": ("vgg11", POOLS | {"distill"}),
    "teachers.width": (64, POOLS | {"distill", "evaluate", "ceiling"}),
    "teachers.depth": (2, POOLS | {"distill", "evaluate", "ceiling"}),
    "teachers.n": (50, set()),
    "teachers.per_job": (5, {"teachers"}),
    "teachers.epochs": (50, {"teachers"}),
    "teachers.lr": (0.1, {"teachers", "ceiling"}),
    "teachers.batch": (128, {"teachers", "ceiling"}),
    "teachers.momentum": (0.5, {"teachers", "ceiling"}),
    "teachers.weight_decay": (0.0, {"teachers", "ceiling"}),
    "teachers.drop_at": (0.7, {"teachers", "ceiling"}),
    "teachers.augment": ("crop", {"teachers", "ceiling", "nas_reference"}),
    "teachers.snapshots": (True, {"teachers"}),
    "recipe.epochs": (100, {"distill", "merge"}),
    "recipe.lr": (0.1, {"distill", "merge"}),
    "recipe.batch": (128, {"distill", "merge"}),
    "recipe.momentum": (0.5, {"distill", "merge"}),
    "recipe.weight_decay": (0.0, {"distill", "merge"}),
    "recipe.loss": ("soft_ce", {"distill", "merge"}),
    "recipe.augment": ("crop", {"distill", "merge"}),
    "distill.methods": (["random", "apm"], set()),
    "distill.shards": (5, {"distill"}),
    "distill.rounds": (100, {"distill"}),
    "distill.labels": ("mean", {"merge"}),
    "distill.label_epoch": (7, {"merge"}),
    "methods.apm.rounds": (7, {"distill"}),
    "methods.apm.lr_images": (0.5, {"distill"}),
    "methods.apm.momentum_images": (0.1, {"distill"}),
    "methods.apm.checkpoints": (2, {"distill"}),
    "methods.apm.period": (1, {"distill"}),
    "methods.apm.batch": (100, {"distill"}),
    "methods.apm.ce": (0.2, {"distill"}),
    "methods.apm.logarithm": (True, {"distill"}),
    "methods.apm.keep_batch": (False, {"distill"}),
    "methods.apm.augment_images": (True, {"distill"}),
    "methods.apm.students": (2, {"distill"}),
    "methods.apm.teacher_epochs": ([1, 2], {"distill"}),
    "methods.apm.expanding": (True, {"distill"}),
    "methods.apm.ema": (0.9, {"distill"}),
    "methods.apm.start": ("correct", {"distill"}),
    "methods.apm.learn_labels": (True, {"distill"}),
    "methods.apm.learn_rate": (True, {"distill"}),
    "methods.apm_plus.rounds": (7, {"distill"}),
    "methods.apm_plus.lr_images": (0.5, {"distill"}),
    "methods.apm_plus.momentum_images": (0.1, {"distill"}),
    "methods.apm_plus.checkpoints": (2, {"distill"}),
    "methods.apm_plus.period": (1, {"distill"}),
    "methods.apm_plus.batch": (100, {"distill"}),
    "methods.apm_plus.ce": (0.2, {"distill"}),
    "methods.apm_plus.logarithm": (True, {"distill"}),
    "methods.apm_plus.keep_batch": (False, {"distill"}),
    "methods.apm_plus.augment_images": (False, {"distill"}),
    "methods.apm_plus.students": (2, {"distill"}),
    "methods.apm_plus.teacher_epochs": ([1, 2], {"distill"}),
    "methods.apm_plus.expanding": (True, {"distill"}),
    "methods.apm_plus.ema": (0.9, {"distill"}),
    "methods.apm_plus.start": ("correct", {"distill"}),
    "methods.apm_plus.learn_labels": (True, {"distill"}),
    "methods.apm_plus.learn_rate": (True, {"distill"}),
    "methods.apm_plus.recipe.lr": (0.7, {"distill", "merge"}),
    "methods.apm_plus.recipe.epochs": (7, {"distill", "merge"}),
    "methods.apm_plus.recipe.loss": ("soft_ce", {"distill", "merge"}),
    "methods.apm_plus.recipe.drop_momentum": (True, {"distill", "merge"}),
    "methods.apm_plus.unrolled.rounds": (7, {"distill"}),
    "methods.apm_plus.unrolled.lr_images": (0.5, {"distill"}),
    "methods.apm_plus.unrolled.lr_labels": (0.5, {"distill"}),
    "methods.apm_plus.unrolled.lr_rate": (0.5, {"distill"}),
    "methods.apm_plus.unrolled.rate": (0.5, {"distill"}),
    "methods.apm_plus.unrolled.before": (7, {"distill"}),
    "methods.apm_plus.unrolled.window": (7, {"distill"}),
    "methods.apm_plus.unrolled.batch_real": (7, {"distill"}),
    "methods.apm_plus.labels": ("teacher", {"merge"}),
    "methods.apm_plus.label_epoch": (7, {"merge"}),
    "methods.dm.rounds": (7, {"distill"}),
    "methods.dm.lr_images": (0.7, {"distill"}),
    "methods.dm.momentum_images": (0.1, {"distill"}),
    "methods.dm.batch_real": (7, {"distill"}),
    "methods.dm.recipe.loss": ("soft_ce", {"distill", "merge"}),
    "methods.dm.recipe.lr": (0.7, {"distill", "merge"}),
    "methods.dm.recipe.drop_momentum": (False, {"distill", "merge"}),
    "methods.dc.rounds": (7, {"distill"}),
    "methods.dc.lr_images": (0.7, {"distill"}),
    "methods.dc.momentum_images": (0.1, {"distill"}),
    "methods.dc.batch_real": (7, {"distill"}),
    "methods.dc.outer_loops": (7, {"distill"}),
    "methods.dc.inner_epochs": (7, {"distill"}),
    "methods.dc.lr_network": (0.7, {"distill"}),
    "methods.dc.start": ("real", {"distill"}),
    "methods.dc.recipe.loss": ("soft_ce", {"distill", "merge"}),
    "methods.dc.recipe.lr": (0.7, {"distill", "merge"}),
    "methods.dc.recipe.drop_momentum": (False, {"distill", "merge"}),
    "methods.dc.recipe.augment": ("crop", {"distill", "merge"}),
    "methods.dsa.rounds": (7, {"distill"}),
    "methods.dsa.lr_images": (0.7, {"distill"}),
    "methods.dsa.momentum_images": (0.1, {"distill"}),
    "methods.dsa.batch_real": (7, {"distill"}),
    "methods.dsa.outer_loops": (7, {"distill"}),
    "methods.dsa.inner_epochs": (7, {"distill"}),
    "methods.dsa.lr_network": (0.7, {"distill"}),
    "methods.dsa.start": ("noise", {"distill"}),
    "methods.dsa.recipe.loss": ("soft_ce", {"distill", "merge"}),
    "methods.dsa.recipe.lr": (0.7, {"distill", "merge"}),
    "methods.dsa.recipe.drop_momentum": (False, {"distill", "merge"}),
    "methods.random_hard.recipe.loss": ("soft_ce", {"merge"}),
    "methods.random_hard.recipe.lr": (0.7, {"merge"}),
    "methods.random_hard.recipe.drop_momentum": (False, {"merge"}),
    "aligned_teachers.n": (50, set()),
    "aligned_teachers.per_job": (5, {"aligned_teachers"}),
    "aligned_teachers.epochs": (7, {"aligned_teachers"}),
    "aligned_teachers.lr": (0.7, {"aligned_teachers"}),
    "aligned_teachers.batch": (7, {"aligned_teachers"}),
    "aligned_teachers.momentum": (0.7, {"aligned_teachers"}),
    "aligned_teachers.weight_decay": (0.7, {"aligned_teachers"}),
    "aligned_teachers.drop_at": (0.5, {"aligned_teachers"}),
    "aligned_teachers.augment": ("crop", {"aligned_teachers"}),
    "aligned_teachers.snapshots": (True, {"aligned_teachers"}),
    "experts.n": (50, set()),
    "experts.per_job": (5, {"experts"}),
    "experts.epochs": (7, {"experts"}),
    "experts.lr": (0.7, {"experts"}),
    "experts.batch": (7, {"experts"}),
    "experts.momentum": (0.7, {"experts"}),
    "experts.weight_decay": (0.7, {"experts"}),
    "experts.drop_at": (0.7, {"experts"}),
    "experts.augment": ("crop", {"experts"}),
    "experts.snapshot_type": ("float16", {"experts"}),
    "flat_experts.n": (50, set()),
    "flat_experts.per_job": (5, {"flat_experts"}),
    "flat_experts.epochs": (70, {"flat_experts"}),
    "flat_experts.lr": (0.7, {"flat_experts"}),
    "flat_experts.batch": (7, {"flat_experts"}),
    "flat_experts.momentum": (0.7, {"flat_experts"}),
    "flat_experts.weight_decay": (0.7, {"flat_experts"}),
    "flat_experts.drop_at": (0.7, {"flat_experts"}),
    "flat_experts.augment": ("crop", {"flat_experts"}),
    "flat_experts.snapshot_type": ("float16", {"flat_experts"}),
    "flat_experts.rho": (0.0, {"flat_experts"}),
    "flat_experts.alpha": (1.0, {"flat_experts"}),
    "methods.mtt.rounds": (7, {"distill"}),
    "methods.mtt.lr_images": (7.0, {"distill"}),
    "methods.mtt.momentum_images": (0.1, {"distill"}),
    "methods.mtt.rate": (0.7, {"distill"}),
    "methods.mtt.lr_rate": (0.7, {"distill"}),
    "methods.mtt.steps": (7, {"distill"}),
    "methods.mtt.expert_epochs": (7, {"distill"}),
    "methods.mtt.start_below": (7, {"distill"}),
    "methods.mtt.batch": (7, {"distill"}),
    "methods.mtt.exact": (False, {"distill"}),
    "methods.mtt.soft_labels": (True, {"distill"}),
    "methods.mtt.recipe.loss": ("soft_ce", {"distill", "merge"}),
    "methods.mtt.recipe.lr": (0.7, {"distill", "merge"}),
    "methods.mtt.recipe.drop_momentum": (False, {"distill", "merge"}),
    "methods.tesla.rounds": (7, {"distill"}),
    "methods.tesla.lr_images": (7.0, {"distill"}),
    "methods.tesla.momentum_images": (0.1, {"distill"}),
    "methods.tesla.rate": (0.7, {"distill"}),
    "methods.tesla.lr_rate": (0.7, {"distill"}),
    "methods.tesla.steps": (7, {"distill"}),
    "methods.tesla.expert_epochs": (7, {"distill"}),
    "methods.tesla.start_below": (7, {"distill"}),
    "methods.tesla.batch": (7, {"distill"}),
    "methods.tesla.exact": (True, {"distill"}),
    "methods.tesla.soft_labels": (True, {"distill"}),
    "methods.tesla.recipe.loss": ("soft_ce", {"distill", "merge"}),
    "methods.tesla.recipe.lr": (0.7, {"distill", "merge"}),
    "methods.tesla.recipe.drop_momentum": (False, {"distill", "merge"}),
    "methods.ftd.rounds": (7, {"distill"}),
    "methods.ftd.lr_images": (7.0, {"distill"}),
    "methods.ftd.momentum_images": (0.1, {"distill"}),
    "methods.ftd.rate": (0.7, {"distill"}),
    "methods.ftd.lr_rate": (0.7, {"distill"}),
    "methods.ftd.steps": (7, {"distill"}),
    "methods.ftd.expert_epochs": (7, {"distill"}),
    "methods.ftd.start_below": (7, {"distill"}),
    "methods.ftd.batch": (7, {"distill"}),
    "methods.ftd.exact": (False, {"distill"}),
    "methods.ftd.ema": (0.5, {"distill"}),
    "methods.ftd.recipe.loss": ("l1", {"distill", "merge"}),
    "methods.ftd.recipe.lr": (0.7, {"distill", "merge"}),
    "methods.ftd.recipe.drop_momentum": (False, {"distill", "merge"}),
    "methods.datm.rounds": (7, {"distill"}),
    "methods.datm.lr_images": (7.0, {"distill"}),
    "methods.datm.momentum_images": (0.1, {"distill"}),
    "methods.datm.lr_labels": (7.0, {"distill"}),
    "methods.datm.momentum_labels": (0.1, {"distill"}),
    "methods.datm.rate": (0.7, {"distill"}),
    "methods.datm.lr_rate": (0.7, {"distill"}),
    "methods.datm.steps": (7, {"distill"}),
    "methods.datm.expert_epochs": (7, {"distill"}),
    "methods.datm.start_from": (1, {"distill"}),
    "methods.datm.start_below_first": (None, {"distill"}),
    "methods.datm.start_below": (37, {"distill"}),
    "methods.datm.expand_until": (7, {"distill"}),
    "methods.datm.threshold": (7.0, {"distill"}),
    "methods.datm.batch": (7, {"distill"}),
    "methods.datm.exact": (False, {"distill"}),
    "methods.datm.start": ("real", {"distill"}),
    "methods.datm.recipe.loss": ("l1", {"distill", "merge"}),
    "methods.datm.recipe.lr": (0.7, {"distill", "merge"}),
    "methods.datm.recipe.batch": (7, {"distill", "merge"}),
    "methods.datm.recipe.drop_momentum": (False, {"distill", "merge"}),
    "methods.bptt.rounds": (7, {"distill"}),
    "methods.bptt.lr_images": (0.7, {"distill"}),
    "methods.bptt.lr_labels": (0.7, {"distill"}),
    "methods.bptt.lr_rate": (0.7, {"distill"}),
    "methods.bptt.rate": (0.7, {"distill"}),
    "methods.bptt.before": (7, {"distill"}),
    "methods.bptt.window": (7, {"distill"}),
    "methods.bptt.batch": (7, {"distill"}),
    "methods.bptt.batch_real": (7, {"distill"}),
    "methods.bptt.recipe.loss": ("l1", {"distill", "merge"}),
    "methods.bptt.recipe.lr": (0.7, {"distill", "merge"}),
    "methods.bptt.recipe.drop_momentum": (False, {"distill", "merge"}),
    "methods.frepo.rounds": (7, {"distill"}),
    "methods.frepo.network": ("frepo_conv", {"distill"}),
    "methods.frepo.lr_images": (0.7, {"distill"}),
    "methods.frepo.batch_real": (7, {"distill"}),
    "methods.frepo.ridge": (0.7, {"distill"}),
    "methods.frepo.flip": (False, {"distill"}),
    "methods.frepo.networks": (7, {"distill"}),
    "methods.frepo.lifetime": (7, {"distill"}),
    "methods.frepo.lr_network": (0.7, {"distill"}),
    "methods.frepo.recipe.loss": ("l1", {"distill", "merge"}),
    "methods.frepo.recipe.optimizer": ("adam", {"distill", "merge"}),
    "methods.frepo.recipe.lr": (0.7, {"distill", "merge"}),
    "methods.frepo.recipe.weight_decay": (0.7, {"distill", "merge"}),
    "methods.frepo.recipe.batch": (7, {"distill", "merge"}),
    "methods.frepo.recipe.schedule": ("cosine", {"distill", "merge"}),
    "methods.frepo.recipe.warmup": (7, {"distill", "merge"}),
    "methods.frepo.recipe.floor": (0.7, {"distill", "merge"}),
    "methods.rcig.rounds": (7, {"distill"}),
    "methods.rcig.network": ("frepo_conv", {"distill"}),
    "methods.rcig.lr_images": (0.7, {"distill"}),
    "methods.rcig.lr_temperature": (0.7, {"distill"}),
    "methods.rcig.batch_real": (7, {"distill"}),
    "methods.rcig.ridge": (0.7, {"distill"}),
    "methods.rcig.flip": (False, {"distill"}),
    "methods.rcig.inner_steps": (7, {"distill"}),
    "methods.rcig.softplus": (None, {"distill"}),
    "methods.rcig.networks": (7, {"distill"}),
    "methods.rcig.lifetime": (7, {"distill"}),
    "methods.rcig.lr_network": (0.7, {"distill"}),
    "methods.rcig.average": (0.7, {"distill"}),
    "methods.rcig.recipe.loss": ("l1", {"distill", "merge"}),
    "methods.rcig.recipe.optimizer": ("adam", {"distill", "merge"}),
    "methods.rcig.recipe.lr": (0.7, {"distill", "merge"}),
    "methods.rcig.recipe.weight_decay": (0.7, {"distill", "merge"}),
    "methods.rcig.recipe.batch": (7, {"distill", "merge"}),
    "methods.rcig.recipe.schedule": ("cosine", {"distill", "merge"}),
    "methods.rcig.recipe.warmup": (7, {"distill", "merge"}),
    "methods.rcig.recipe.floor": (0.7, {"distill", "merge"}),
    "evaluate.networks": (3, {"evaluate"}),
    "evaluate.epochs": (300, {"evaluate"}),
    "evaluate.architectures": (["convnet", "alexnet"], set()),
    "evaluate.overrides": ({"vit": {"lr": 0.1}}, {"evaluate"}),
    "evaluate.rates": ([0.1, 1.0], {"evaluate"}),
    "evaluate.hard_labels": (["convnet", "vit"], set()),
    "evaluate.plain": ([], set()),
    "evaluate.ceiling.architectures": (["convnet", "vit"], set()),
    "evaluate.ceiling.networks": (3, {"ceiling"}),
    "evaluate.ceiling.epochs": (20, {"ceiling"}),
    "nas.networks": (20, {"nas_proxy", "nas_reference"}),
    "nas.seeds": (3, {"nas_proxy"}),
    "nas.cells": (1, {"nas_proxy", "nas_reference"}),
    "nas.stem": (8, {"nas_proxy", "nas_reference"}),
    "nas.norm": ("instance", {"nas_proxy", "nas_reference"}),
    "nas.proxy.epochs": (10, {"nas_proxy"}),
    "nas.proxy.lr": (0.1, {"nas_proxy"}),
    "nas.proxy.batch": (32, {"nas_proxy"}),
    "nas.proxy.weight_decay": (0.0, {"nas_proxy"}),
    "nas.train.epochs": (10, {"nas_reference"}),
    "nas.train.lr": (0.05, {"nas_reference"}),
    "nas.train.batch": (32, {"nas_reference"}),
    "nas.train.weight_decay": (0.0, {"nas_reference"}),
    "nas.reference.source": ("table", {"nas"}),
    "nas.reference.table": ("table.csv", set()),
    "nas.reference.column": ("accuracy", set()),
}
TABLE = {"nas.reference.table": "t.csv", "nas.reference.column": "c"}


def jobs(plan: Plan) -> dict[tuple[str, ...], str]:
    """The settings of every job, by stage and wildcards."""
    found = {("distill", method): plan.distill(method) for method in methods.METHODS}
    found |= {("merge", method): plan.merge(method) for method in methods.METHODS}
    found |= {("evaluate", *pair): plan.evaluate(*pair) for pair in plan.protocols}
    networks = plan.config["evaluate"]["ceiling"]["architectures"]
    found |= {("ceiling", network): plan.ceiling(network) for network in networks}
    found |= {(pool,): plan.pool(pool) for pool in POOLS}
    single = ("prepare", "nas_proxy", "nas_reference", "nas")
    return {**found, **{(stage,): getattr(plan, stage)() for stage in single}}


def changed(changes: dict[str, Any], base: dict = CONFIG) -> set[tuple[str, ...]]:
    """Jobs of both configs whose settings the edit changes."""
    config = edited(changes, base)
    check_schema(config, SCHEMA)
    before, after = jobs(Plan(base)), jobs(Plan(config))
    return {job for job in before.keys() & after.keys() if before[job] != after[job]}


@pytest.mark.parametrize("key", EDITS)
def test_an_edited_key_changes_exactly_its_stages(key):
    value, stages = EDITS[key]
    extra = TABLE if key == "nas.reference.source" else {}
    assert {job[0] for job in changed({key: value, **extra})} == stages
    assert CONFIG_LEAVES[key] != value


def test_every_key_has_its_place_in_the_table_above():
    assert set(EDITS) == set(CONFIG_LEAVES) - {"methods.random"}


def test_the_file_of_a_table_is_an_input_and_its_column_a_setting():
    base = edited({**TABLE, "nas.reference.source": "table"})
    assert changed({"nas.reference.table": "other.csv"}, base) == set()
    assert changed({"nas.reference.column": "other"}, base) == {("nas",)}


def test_a_control_has_the_settings_of_its_method_but_no_rounds():
    changes = {"methods.apm_plus.learn_rate": True, "methods.apm_plus.recipe.lr": 0.7}
    plan = Plan(edited({**changes, "methods.apm_plus.label_epoch": 3}))
    with_rounds, without = (json.loads(plan.distill(m)) for m in ("apm_plus", "random_plus"))
    assert with_rounds.pop("rounds") == 2500
    assert {**with_rounds, "method": "random_plus"} == without
    merged_sets = [json.loads(plan.merge(m)) for m in ("apm_plus", "random_plus")]
    assert {**merged_sets[0], "method": "random_plus"} == merged_sets[1]


def test_random_images_do_not_depend_on_how_others_are_distilled():
    for key, value in (
        ("recipe.lr", 0.1),
        ("distill.rounds", 10),
        ("methods.apm.ce", 0.0),
        ("compute.precision", "float32"),
    ):
        found = changed({key: value})
        assert ("distill", "apm") in found and ("distill", "random") not in found
    assert ("distill", "random") in changed({"ipc": 20})


def test_an_override_changes_its_architecture_alone():
    for number in ({"epochs": 7}, {"networks": 7}, {"lr": 7.0}):
        found = changed({"evaluate.overrides": {"vgg11": number}})
        assert found == {("evaluate", "vgg11", "own")}
    for network in ("resnet18", "convnet"):
        found = changed({"evaluate.overrides": {network: {"width": 16}}})
        assert found and {job[1] for job in found} == {network}
        assert {job[0] for job in found} <= {"evaluate", "ceiling"}
        plan = Plan(edited({"evaluate.overrides": {network: {"width": 16}}}))
        for text in (plan.evaluate(network, "own"), plan.ceiling(network)):
            assert json.loads(text)["width"] == 16
    text = Plan(edited({"evaluate.overrides": {"vit": {"lr": 0.1}}})).evaluate("vit", "own")
    settings = json.loads(text)
    assert (settings["lr"], settings["epochs"], settings["networks"]) == (0.1, 1000, 5)


def test_an_override_of_one_number_leaves_the_others_to_the_section():
    config = edited({"evaluate.networks": 3, "evaluate.rates": [0.3, 1.0]})
    config["evaluate"]["overrides"] = {"vit": {"epochs": 7}}
    validate(config, str(SCHEMA_FILE))
    settings = json.loads(Plan(config).evaluate("vit", "own"))
    found = [settings[key] for key in ("epochs", "networks", "rates", "lr")]
    assert found == [7, 3, [0.3, 1.0], None]


def test_width_and_depth_are_those_of_the_teachers_network_alone():
    found = changed({"teachers.width": 64})
    assert {job[1] for job in found if job[0] in ("evaluate", "ceiling")} == {"convnet"}
    settings = json.loads(Plan(CONFIG).evaluate("vgg11", "own"))
    assert settings["width"] is None and settings["depth"] is None


def test_equal_numbers_in_another_spelling_change_nothing():
    assert changed({"teachers.weight_decay": 0.0005, "methods.apm.lr_images": 1}) == set()


def test_another_algorithm_number_changes_its_stage_alone(monkeypatch):
    before = jobs(Plan(CONFIG))
    for stage in ALL - POOLS | {"teachers"}:
        with monkeypatch.context() as patch:
            patch.setitem(ALGORITHM, stage, 99)
            after = jobs(Plan(CONFIG))
        found = {job[0] for job in before if before[job] != after[job]}
        assert found == (POOLS if stage in POOLS else {stage})


def test_all_settings_but_how_to_compute_are_on_record():
    recorded = json.loads(Plan(CONFIG).collect())
    assert set(recorded) == set(CONFIG) - {"compute"} | {"algorithm", "precision"}
    assert "data_dir" not in recorded["dataset"]


def test_shards_and_groups_are_counted():
    plan = Plan(edited({"distill.shards": 5, "teachers.n": 30}))
    assert plan.shard_ipc == 10 and list(plan.groups("teachers")) == [0, 1, 2]
    assert plan.protocols == [
        *((name, "own") for name in CONFIG["evaluate"]["architectures"]),
        ("convnet", "hard"),
        ("convnet", "plain"),
    ]


def test_results_that_the_config_does_not_describe_are_refused():
    plan = Plan(CONFIG)
    plan.check_target("cifar10", "50")
    message = r"results/digits_ipc10\.json: the config in use makes results/cifar10_ipc50\.json"
    for target in (("digits", "10"), ("digits", "50"), ("cifar10", "10")):
        with pytest.raises(ConfigError, match="add --configfile"):
            plan.check_target(*target)
    with pytest.raises(ConfigError, match=message):
        plan.check_target("digits", "10")


def test_a_name_that_is_no_source_needs_one():
    config = edited({"dataset.name": "pets"})
    with pytest.raises(ConfigError, match=r"dataset\.source: null means dataset\.name, and 'pets'"):
        Plan(config)


def test_width_and_depth_belong_to_the_convnet():
    plan = Plan(edited({"teachers.network": "vgg11", "teachers.width": 64}))
    teachers = json.loads(plan.pool("teachers"))
    assert (teachers["network"], teachers["width"], teachers["depth"]) == ("vgg11", None, None)
    assert json.loads(plan.evaluate("convnet", "own"))["width"] == 64


@pytest.mark.parametrize(
    ("device", "local", "file", "gpus"),
    [
        ("auto", True, None, 0),
        ("auto", True, "nvidia0", 1),
        ("auto", True, "nvidiactl", 0),
        ("auto", True, "dxg", 1),
        ("auto", False, None, 1),
        ("cpu", False, "nvidia0", 0),
        ("cuda", True, None, 1),
        ("cuda:1", True, "nvidia1", 1),
    ],
)
def test_jobs_ask_for_a_gpu_where_there_may_be_one(
    monkeypatch, tmp_path, device, local, file, gpus
):
    monkeypatch.setattr("plan.DEVICES", tmp_path)
    if file:
        (tmp_path / file).touch()
    assert Plan(edited({"compute.device": device})).gpus(local=local) == gpus
