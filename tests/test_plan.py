"""Which job depends on which setting."""

import json
from typing import Any

import pytest
from pydantic import BaseModel

from apm_core.errors import ConfigError
from apm_core.settings import plan as module
from apm_core.settings.method import Conditions, methods, ready_entries
from apm_core.settings.plan import ALGORITHM, Plan
from apm_core.settings.run import RunSettings
from apm_core.settings.schema import schema_of
from apm_core.settings.section import laid_over
from apm_core.settings.stages import EvaluateSettings
from apm_core.settings.training import POOLS

ENTRIES = [*methods(), *ready_entries()]
BASE = {
    "distill": {"methods": ENTRIES},
    "teachers": {"snapshots": True},
    "evaluate": {"kd": {"architectures": ["convnet"]}},
}
RANKED = {"nas_proxy", "nas_short", "nas_reference", "nas"}
STAGES = {"prepare", "distill", "merge", "evaluate", "ceiling", "continual"} | RANKED
ALL = STAGES | set(POOLS)
TRAINED = ALL - {"prepare", "merge", "nas"}

# The rule: a setting changes the stages of the longest of these that begins its key ...
RULE = {
    "seed": ALL,
    "ipc": {"distill"},
    "dataset": {"prepare"},
    "compute": set(),
    **{pool: {pool} for pool in POOLS},
    "recipe": {"distill", "merge"},
    "distill": {"distill"},
    "distill.product": {"merge"},
    "methods": {"distill"},
    "evaluate": {"evaluate"},
    "evaluate.ceiling": {"ceiling"},
    "nas": {"nas_proxy", "nas_short", "nas_reference"},
    "nas.proxy": {"nas_proxy", "nas_short"},
    "nas.train": {"nas_reference"},
    "nas.reference": {"nas"},
    "continual": {"continual"},
}
CEILING = {"teachers", "ceiling"}
FRESH = {"evaluate", "ceiling", "continual"}  # train networks of an architecture of their own
ARCHITECTURE = {*POOLS, "distill"} | FRESH
# ... but for these keys, and those of `of_a_method`
EXCEPTIONS: dict[str, set[str]] = {
    "compute.precision": TRAINED,
    "teachers.network": ARCHITECTURE,
    "teachers.width": ARCHITECTURE,
    "teachers.depth": ARCHITECTURE,
    **{f"{pool}.n": set() for pool in POOLS},
    **{
        f"teachers.{key}": CEILING
        for key in ("lr", "batch", "momentum", "weight_decay", "drop_at", "rho", "alpha")
    },
    "teachers.augment": CEILING | {"nas_short", "nas_reference"},
    "recipe.loss": {"merge"},  # students have their own
    "distill.methods": set(),
    "distill.labels": {"merge"},
    "distill.label_epoch": {"merge"},
    "evaluate.architectures": set(),
    "evaluate.ceiling.architectures": set(),
    "continual.network": set(),  # another job
    "nas.seeds": {"nas_proxy", "nas_short"},
    "nas.short": set(),  # another job
    "nas.reference.table": set(),
    "nas.reference.column": set(),  # as long as the reference is trained
}


def of_a_method(key: str) -> set[str] | None:
    """Stages of a method's labels and recipe; None for its other settings."""
    _, method, *rest = key.split(".")
    if rest[0] in ("labels", "label_epoch", "product"):
        return {"merge"}
    if rest[0] == "recipe":
        own = methods()[method]
        return {"distill", "merge"} if own.trains and rest[1] in own.recipe_keys else {"merge"}
    return None


def expected(key: str) -> set[str]:
    if key in EXCEPTIONS:
        return EXCEPTIONS[key]
    if key.startswith("methods.") and (found := of_a_method(key)) is not None:
        return found
    return RULE[max((one for one in RULE if f"{key}.".startswith(f"{one}.")), key=len)]


def leaves(value: BaseModel, prefix: str = "") -> dict[str, tuple[type[BaseModel], str, Any]]:
    """Section class, field and value of every setting by full key."""
    found = {}
    for name in type(value).model_fields:
        inner = getattr(value, name)
        if isinstance(inner, BaseModel):
            found |= leaves(inner, f"{prefix}{name}.")
        else:
            found[prefix + name] = (type(value), name, inner)
    return found


DEFAULTS = RunSettings()
SETTINGS = leaves(DEFAULTS)
TABLE = {"nas.reference.table": "t.csv", "nas.reference.column": "c"}
LOSSES = {  # settings that go with another loss, and their names in their sections
    "methods.apm_plus.unrolled.rounds": "unrolled.rounds",
    "methods.mtt.soft_labels": "soft_labels",
    "methods.tesla.soft_labels": "soft_labels",
}
EXTRA = {  # what has to change together with a key
    **{f"{pool}.alpha": {f"{pool}.rho": 0.01} for pool in POOLS if not getattr(DEFAULTS, pool).rho},
    "nas.reference.source": TABLE,
    **{f"{pool}.snapshots": {"distill.methods": ["apm", "random", "herding"]} for pool in POOLS},
    **{key: {key.replace(name, "recipe.loss"): "soft_ce"} for key, name in LOSSES.items()},
}
SPECIAL = {  # values that cannot be guessed from the schema
    "dataset.name": "cifar100",
    "dataset.data_dir": "elsewhere",
    "teachers.snapshots": False,
    "compute.device": "cpu",
    "distill.methods": ENTRIES[::-1],
    "evaluate.architectures": ["convnet"],
    "evaluate.overrides": {"vit": {"epochs": 7}},
    "evaluate.rates": [0.1, 1.0],
    "evaluate.hard_labels": ["vit"],
    "evaluate.plain": [],
    "evaluate.kd.architectures": ["convnet", "vit"],
    "evaluate.ceiling.architectures": ["convnet", "vit"],
    "continual.rates": [0.1, 1.0],
    **{f"methods.{name}.recipe.epochs": 100 for name in ("apm", "apm_plus")},
    "methods.apm_plus.teacher_epochs": [1, 2],
    "methods.cad.window": [4, 10],
    "methods.rded.tiles": 2,
    "nas.reference.table": "table.csv",
    "nas.reference.column": "accuracy",
}


def candidates(key: str) -> list[Any]:
    """Other values of a setting."""
    kind, name, value = SETTINGS[key]
    if key in SPECIAL:
        return [SPECIAL[key]]
    node = schema_of(kind)["properties"][name]
    if "enum" in node:
        return [one for one in node["enum"] if one not in (None, value)]
    types = node["type"] if isinstance(node["type"], list) else [node["type"]]
    if "boolean" in types:
        return [not value] if value is not None else [True]
    if "integer" in types:
        return [value // 2, value * 2, value + 1] if value else [7, 1]
    if "number" in types:
        return [value / 2] if value else [0.5]
    return ["crop"]  # an augmentation


def nested(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def edited(changes: dict[str, Any]) -> Plan:
    config: dict[str, Any] = BASE
    for key, value in changes.items():
        config = laid_over(config, nested(key, value))
    return Plan(RunSettings.of(config))


def jobs(plan: Plan) -> dict[tuple[str, ...], str]:
    """The settings of every job, by stage and wildcards."""
    found = {("distill", entry): plan.distill(entry) for entry in plan.entries}
    found |= {("merge", entry): plan.merge(entry) for entry in plan.entries}
    found |= {("evaluate", network): plan.evaluate(network) for network in plan.protocols}
    networks = plan.settings.evaluate.ceiling.architectures
    found |= {("ceiling", network): plan.ceiling(network) for network in networks}
    found |= {(pool,): plan.pool(pool) for pool in POOLS}
    found |= {("continual", plan.settings.continual.network): plan.continual()}
    single = ("prepare", "nas_proxy", "nas_short", "nas_reference", "nas")
    found |= {(stage,): getattr(plan, stage)() for stage in single}
    return {job: told.text for job, told in found.items()}


BEFORE = jobs(edited({}))


def changed(changes: dict[str, Any], before: dict[tuple[str, ...], str] = BEFORE) -> set[tuple]:
    """Jobs of both plans whose settings the edit changes."""
    after = jobs(edited(changes))
    return {job for job in before.keys() & after.keys() if before[job] != after[job]}


# class labels, and labels of a method's own, go with one loss
FIXED = [
    f"methods.{name}.recipe.loss"
    for name, one in methods().items()
    if one.labels_of == "classes" or one.contradiction(Conditions(loss="kl", epochs=100))
]


@pytest.mark.parametrize("key", FIXED)
def test_labels_keep_their_loss(key):
    for value in candidates(key):
        with pytest.raises(ConfigError, match=f"^config: {key}: {value} does not go with "):
            edited({key: value})


@pytest.mark.parametrize("key", [key for key in SETTINGS if key not in FIXED])
def test_an_edited_key_changes_exactly_its_stages(key):
    extra = EXTRA.get(key, {})
    tries = []
    for value in candidates(key):
        try:
            found = {job[0] for job in changed({key: value, **extra})}
        except ConfigError as error:  # at odds with another setting
            tries.append(str(error))
            continue
        wanted = expected(key)
        if key in LOSSES:
            wanted = wanted.union(*map(expected, extra))
        if found or not wanted:  # else: what the default comes to
            assert found == wanted, value
            return
        tries.append(value)
    pytest.fail(f"no other value changes anything: {tries}")


@pytest.mark.parametrize(
    ("base", "key", "value"),
    [
        ({"dataset.whitening": "channel"}, "dataset.zca_eps", 0.5),
        ({}, "teachers.alpha", 0.5),
        (
            {"distill.methods": ["apm"], "teachers.snapshots": False},
            "teachers.snapshot_type",
            "float16",
        ),
    ],
)
def test_a_setting_that_others_leave_without_effect_changes_nothing(base, key, value):
    assert changed({**base, key: value}, jobs(edited(base))) == set()


def test_images_have_to_fit_every_architecture_that_is_trained():
    changes = {"evaluate.architectures": ["convnet"], "evaluate.hard_labels": ["vgg11"]}
    changes |= {"evaluate.plain": [], "evaluate.ceiling.architectures": ["alexnet"]}
    plan = edited({**changes, "distill.methods": [{"name": "rcig", "network": "resnet18"}]})
    names = [network.network for network in plan.networks]
    assert sorted(names) == ["alexnet", "convnet", "convnet", "resnet18", "vgg11"]


def test_what_entries_ask_of_the_images_is_known_before_they_are_prepared():
    entries = ["apm", {"name": "mine", "method": "apm", "tiles": 3}, "dm", "frepo", "grand"]
    entries.append({"name": "theirs", "method": "imported", "tiles": 4})
    changes = {"teachers.network": "vgg11", "teachers.width": None, "distill.tiles": 2}
    networks = {"methods.frepo.network": "frepo_conv"}
    demands = edited({"distill.methods": entries, **changes, **networks}).demands
    assert demands.images_per_class == 50 * 9
    own = {"distill.methods.1.tiles": 3, "distill.methods.5.tiles": 4}
    assert demands.tiles == {"distill.tiles": 2} | own
    readers = {"methods.dm": "vgg11", "methods.frepo": "frepo_conv", "methods.grand": "vgg11"}
    assert demands.embedding == readers


def test_exceptions_are_keys():
    assert set(EXCEPTIONS) | set(SPECIAL) <= set(SETTINGS)


def test_the_file_of_a_table_is_an_input_and_its_column_a_setting():
    base = {**TABLE, "nas.reference.source": "table"}
    assert {job[0] for job in changed(base)} == {"nas"}
    before = jobs(edited(base))
    assert changed({**base, "nas.reference.table": "other.csv"}, before) == set()
    assert changed({**base, "nas.reference.column": "other"}, before) == {("nas",)}


def test_a_control_has_the_settings_of_its_entry_but_no_rounds():
    plan = edited({"methods.apm_plus.recipe.lr": 0.7, "methods.apm_plus.label_epoch": 3})
    with_rounds, without = (plan.distill(name) for name in ("apm_plus", "random_plus"))
    assert with_rounds.rounds == 2500 and without.rounds is None
    assert without.options == {"start": "correct", "teacher_epochs": [2, 4]}
    shared = {"options": {}, "rounds": None, "recipe": None}
    assert with_rounds.model_copy(update=shared) == without.model_copy(update=shared)
    sets = [plan.merge(name) for name in ("apm_plus", "random_plus")]
    assert sets[0].changed({"entry": "random_plus"}) == sets[1]
    assert plan.label_pool("random_plus") == "aligned_teachers"


def test_a_control_stays_when_only_the_rounds_of_its_entry_change():
    config = {"distill.methods": ["apm_plus", "random_plus"], "evaluate.kd.architectures": []}
    before = jobs(edited(config))
    for key, value in (("lr_images", 7.0), ("unrolled.window", 7), ("recipe.epochs", 500)):
        assert ("distill", "random_plus") not in changed(
            {**config, f"methods.apm_plus.{key}": value}, before
        )
    for key, value in (("start", "real"), ("teacher_epochs", [1, 3])):
        assert ("distill", "random_plus") in changed(
            {**config, f"methods.apm_plus.{key}": value}, before
        )


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


def test_labels_decide_who_labels():
    plan = Plan(
        RunSettings.of({"distill": {"methods": ["apm", "dm", "datm", "random", "random_hard"]}})
    )
    pools = {entry: plan.label_pool(entry) for entry in plan.entries}
    teachers = {"apm": "teachers", "random": "teachers"}
    assert pools == {**teachers, "dm": None, "datm": None, "random_hard": None}
    labels = {entry: plan.merge(entry).labels for entry in plan.entries}
    assert labels == {
        **dict.fromkeys(("apm", "random"), "teacher"),
        **{"dm": "classes", "random_hard": "classes", "datm": "own"},
    }


def test_an_override_changes_its_architecture_alone():
    recipe = {"optimizer": "adam", "lr": 1e-3}, {"schedule": "cosine"}, {"loss": "l1"}, {"batch": 9}
    for number in ({"epochs": 7}, {"networks": 7}, *recipe):
        assert changed({"evaluate.overrides": {"vgg11": number}}) == {("evaluate", "vgg11")}
    for network in ("resnet18", "convnet"):
        changes = {"evaluate.overrides": {network: {"width": 16}}}
        found = changed(changes)
        assert found and {job[1] for job in found} == {network}
        assert {job[0] for job in found} <= FRESH
        plan = edited({**changes, "continual.network": network})
        for told in (plan.evaluate(network), plan.ceiling(network), plan.continual()):
            assert told.network.width == 16
    override = {"vit": {"optimizer": "sgd", "lr": 0.1}}
    told = edited({"evaluate.overrides": override}).evaluate("vit")
    assert (told.lr, told.epochs, told.networks) == (0.1, 1000, 5)


def test_an_override_that_is_null_is_none():
    plan = edited({"evaluate.overrides": {"vit": {"width": None, "epochs": 7}, "alexnet": None}})
    assert plan.evaluate("vit").epochs == 7
    plan = edited({"evaluate.overrides": {"vit": None}})
    assert plan.evaluate("vit") == edited({}).evaluate("vit")


def test_an_override_of_one_number_leaves_the_others_to_the_section():
    section = {"evaluate.networks": 3, "evaluate.rates": [0.3, 1.0]}
    plan = edited({**section, "evaluate.overrides": {"vit": {"epochs": 7}}})
    told = plan.evaluate("vit")
    assert (told.epochs, told.networks, told.rates, told.lr) == (7, 3, [0.3, 1.0], None)


def test_width_and_depth_are_those_of_the_teachers_network_alone():
    found = changed({"teachers.width": 64})
    assert {job[1] for job in found if job[0] in FRESH} == {"convnet"}
    narrow = edited({"teachers.network": "resnet18", "teachers.width": 8})
    assert narrow.pool("teachers").network.width == 8
    assert narrow.evaluate("resnet18").network.width == 8
    assert narrow.evaluate("convnet").network.width is None


def test_what_will_read_the_images_is_known_before_they_are_prepared():
    plan = edited({"teachers.network": "vgg11", "teachers.width": 8})
    networks = {one.network: one.width for one in plan.networks}
    assert networks == {"vgg11": 8, "convnet": None, "resnet18": None, "vit": None}


def test_equal_numbers_in_another_spelling_change_nothing():
    assert changed({"teachers.weight_decay": 0.0005, "methods.apm.lr_images": 1}) == set()


def test_a_pool_is_named_by_its_settings():
    plan = edited({})
    assert plan.pool_key("teachers") == edited({"ipc": 10, "teachers.n": 50}).pool_key("teachers")
    keys = {plan.pool_key("teachers"), edited({"teachers.epochs": 60}).pool_key("teachers")}
    assert len(keys) == 2 and all(len(key) == 10 for key in keys)


def test_another_algorithm_number_changes_its_stage_alone(monkeypatch):
    for stage in STAGES | {"teachers"}:
        with monkeypatch.context() as patch:
            patch.setitem(module.ALGORITHM, stage, 99)
            after = jobs(edited({}))
        found = {job[0] for job in BEFORE if BEFORE[job] != after[job]}
        assert found == (set(POOLS) if stage == "teachers" else {stage})
    assert set(ALGORITHM) == STAGES | {"teachers", "collect"}


def test_all_settings_but_how_to_compute_are_on_record():
    plan = edited(TABLE | {"nas.reference.table": "/a/b/t.csv"})
    told = plan.collect()
    assert set(told.record["methods"]) == {entry.method for entry in plan.entries.values()}
    assert set(told.record) == set(RunSettings.model_fields) - {"compute"} | {"precision"}
    assert "data_dir" not in told.record["dataset"]
    assert told.record["nas"]["reference"]["table"] == "t.csv"
    json.loads(told.text)


@pytest.mark.parametrize(
    ("entry", "control", "recipe"),
    [
        ("apm", "random", []),
        ("apm_plus", "random_plus", []),
        ("dm", "random_hard", []),
        ("dsa", "random_hard", []),
        ("dc", "random_hard", ["augment"]),
        ("herding", "random", []),
        ("herding_hard", "random_hard", []),
    ],
)
def test_a_control_has_the_labels_of_what_it_is_compared_with(entry, control, recipe):
    found = edited({}).collect().controls[entry]
    assert (found.entry, found.recipe) == (control, recipe)


def test_controls_and_sets_with_labels_or_tiles_of_their_own_have_no_control():
    controls = edited({}).collect().controls
    alone = {"random", "random_hard", "random_plus", "frepo", "rcig", "datm", "dance_tiles"}
    assert not alone & controls.keys()


def test_the_control_of_an_entry_has_labels_of_the_same_pool():
    labels = {"labels": "mean", "label_epoch": 4}
    entries = ["apm_plus", {"name": "mine", "method": "random", **labels}]
    assert edited({"distill.methods": entries}).collect().controls == {}
    entries += [{"name": "other", "method": "apm", **labels}]  # of the teachers that label `mine`
    assert set(edited({"distill.methods": entries}).collect().controls) == {"other"}


def test_learned_labels_are_compared_with_what_their_method_starts_from():
    labels = {"labels": "mean", "label_epoch": 4, "recipe": {"loss": "soft_ce"}}
    unrolled = {"name": "apm_plus", "unrolled": {"rounds": 5}, **labels}
    entries = [unrolled, {"name": "herding", **labels}, {"name": "random", **labels}]
    assert set(edited({"distill.methods": entries}).collect().controls) == {"herding"}
    entries.append({"name": "start", "method": "apm_plus", "start_only": True})
    controls = edited({"distill.methods": entries}).collect().controls
    assert controls["apm_plus"].entry == "start"


def test_the_control_of_an_entry_is_what_it_starts_from():
    entries = [
        "random",
        {"name": "mine", "method": "apm", "recipe": {"lr": 0.5}},
        {"name": "start", "method": "mine", "start_only": True},
        {"name": "tiles", "method": "apm", "tiles": 2},
        {"name": "tiles_start", "method": "tiles", "start_only": True},
        {"name": "frepo_start", "method": "frepo", "start_only": True},
        "frepo",
    ]
    controls = edited({"distill.methods": entries}).collect().controls
    assert {name: one.entry for name, one in controls.items()} == {
        "mine": "start",
        "tiles": "tiles_start",
        "frepo": "frepo_start",
    }


def test_shards_and_groups_are_counted():
    plan = edited({"distill.shards": 5, "teachers.n": 30})
    assert plan.shard_ipc == 10 and list(plan.groups("teachers")) == [0, 1, 2]


def test_an_architecture_is_evaluated_by_one_job_under_all_its_protocols():
    assert edited({}).protocols == {
        "convnet": ["own", "hard", "plain", "kd"],
        **{network: ["own"] for network in ("vgg11", "resnet18", "vit")},
    }
    lists = {"architectures": ["vit", "convnet"], "hard_labels": ["alexnet", "vit"]}
    plan = edited({"evaluate": {**lists, "plain": ["vit"], "kd": {"architectures": ["vgg11"]}}})
    assert plan.protocols == {
        "vit": ["own", "hard", "plain"],
        "convnet": ["own"],
        "alexnet": ["hard"],
        "vgg11": ["kd"],
    }
    assert plan.evaluate("vit").protocols == ["own", "hard", "plain"]


def test_a_protocol_more_changes_the_evaluation_of_its_architecture_alone():
    assert changed({"evaluate.hard_labels": ["convnet", "vit"]}) == {("evaluate", "vit")}
    assert changed({"evaluate.plain": []}) == {("evaluate", "convnet")}


def test_an_architecture_that_the_run_does_not_evaluate_is_refused():
    with pytest.raises(ConfigError, match="alexnet: the config in use does not evaluate it: add"):
        edited({}).evaluate("alexnet")


def test_results_that_the_config_does_not_describe_are_refused():
    plan = edited({})
    plan.require_target("cifar10", "50")
    message = r"results/digits_ipc10\.json: the config in use makes results/cifar10_ipc50\.json"
    for target in (("digits", "10"), ("digits", "50"), ("cifar10", "10")):
        with pytest.raises(ConfigError, match="add --configfile"):
            plan.require_target(*target)
    with pytest.raises(ConfigError, match=message):
        plan.require_target("digits", "10")
    plan.require_dataset("cifar10")
    with pytest.raises(ConfigError, match=r"^digits: the config in use is for cifar10: add"):
        plan.require_dataset("digits")


def test_an_entry_that_the_run_does_not_have_is_refused():
    with pytest.raises(ConfigError, match="mine: the config in use has no such entry: add it"):
        edited({}).distill("mine")


def test_settings_survive_the_way_to_their_job():
    plan = edited({})
    for told in (plan.distill("rcig"), plan.merge("apm"), plan.pool("experts"), plan.prepare()):
        assert type(told).read(told.text) == told
    assert plan.distill("rcig").own == plan.entries["rcig"].settings.changed(
        {"rounds": None, "recipe": dict.fromkeys(plan.settings.methods.rcig.recipe.model_dump())}
        | {"rounds": methods()["rcig"].rounds, "recipe": methods()["rcig"].recipe.model_dump()}
    )


def test_online_labels_change_the_evaluation_of_their_architectures_alone():
    number = {"evaluate.kd.temperature": 4.0}
    assert changed(number) == {("evaluate", "convnet")}
    told = edited(number).evaluate("convnet")
    assert (told.kd.temperature, told.kd.epochs) == (4.0, 300)
    assert EvaluateSettings.read(told.text) == told
    without = edited({"evaluate.kd.architectures": []}).evaluate("convnet")
    assert without.kd is None and "kd" not in without.to_dict()  # as before there were any
    assert EvaluateSettings.read(without.text) == without
