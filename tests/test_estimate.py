"""Estimates: what is counted follows from formulas, and from what runs do."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from apm_core import methods
from apm_core.estimate import speed
from apm_core.estimate.disk import disk_bytes
from apm_core.estimate.jobs import jobs
from apm_core.estimate.size import Size, size_of
from apm_core.estimate.work import Work, cost_of, decoded_images, works
from apm_core.methods.base import Job
from apm_core.methods.passes import Extent
from apm_core.nets.base import Shape
from apm_core.nets.flat import FlatNet
from apm_core.nets.spec import Spec
from apm_core.runtime.device import Compute
from apm_core.settings.plan import Plan
from apm_core.settings.run import RunSettings

DIGITS = Size(1438, 359, Shape(1, 8, 10))
SMALL = {
    "dataset": {"name": "digits", "whitening": "none"},
    "ipc": 2,
    "teachers": {"width": 4, "depth": 1, "n": 3, "per_job": 1, "epochs": 7, "batch": 100},
    "distill": {"methods": ["random"]},
    "evaluate": {
        "architectures": ["convnet"],
        "networks": 2,
        "epochs": 9,
        "hard_labels": [],
        "plain": [],
        "ceiling": {"architectures": []},
    },
    "nas": {"networks": 0},
}
# a convolution of 3 x 3 and the linear layer behind pooling: 2 operations for a product and sum
FORWARD = 2 * (64 * 9 * 1 * 4 + 4 * 16 * 10)


def plan_of(**changes) -> Plan:
    return Plan(RunSettings.of({**SMALL, **changes}))


def of_stage(plan: Plan, stage: str, size: Size = DIGITS) -> list[Work]:
    return [work for work in works(plan, size) if work.stage == stage]


def test_teachers_and_disk_follow_from_formulas(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = plan_of()
    size = size_of(plan)
    assert size == DIGITS and size.shape == digits.shape
    (work,) = of_stage(plan, "teachers")
    assert work.flops == FORWARD * 3 * (3 * 7 * 1438 + 359)
    assert work.steps == 3 * 7 * 15 + 3 and work.jobs == 3
    assert not of_stage(plan, "ceiling")
    parameters = (9 * 4 + 4) + 2 * 4 + (64 * 10 + 10)
    images = 20 * (64 * 5 + 40) * 2
    assert disk_bytes(plan, size) == (1438 + 359) * 64 + 3 * 4 * parameters + images


def test_the_evaluation_sees_every_tile():
    plan = plan_of(distill={"methods": ["random"], "tiles": 2})
    assert decoded_images(plan, DIGITS, "random") == 2 * 10 * 4
    (work,) = of_stage(plan, "evaluate")
    assert work.flops == FORWARD * 2 * (10 * 3 * 80 + 359)


def test_rates_and_protocols_are_counted():
    evaluate = {**SMALL["evaluate"], "rates": [0.3, 1.0, 3.0], "plain": ["convnet"]}
    (work,) = of_stage(plan_of(evaluate=evaluate), "evaluate")
    trained = 2 * (2 + 3) * 10 * 3 * 20
    assert work.flops == FORWARD * (trained + 2 * 3 * 1438 + 2 * 2 * 359)


def test_a_network_writes_what_its_layers_say():
    net = FlatNet(Spec("convnet", Shape(1, 8, 10), 4, 1).build())
    # convolution, norm and ReLU of 4 maps of 8 x 8, the pooled maps, the logits
    assert cost_of(net, Shape(1, 8, 10)).values == 3 * 256 + 64 + 10


def test_sizes_are_read_from_prepared_data(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("work/pets").mkdir(parents=True)
    shutil.copy(digits.artifact.path, "work/pets/data.zarr.zip")
    settings = digits.artifact.settings["images"]
    images = {key: settings[key] for key in ("source", "whitening", "test_fraction")}
    plan = Plan(RunSettings.of({"dataset": {"name": "pets", **images}}))
    assert size_of(plan) == DIGITS
    other = Plan(RunSettings.of({"dataset": {"name": "pets", **images, "held_out": 0.5}}))
    assert size_of(other) == Size(719, 719, DIGITS.shape)  # they will be prepared again


def test_classes_that_are_not_there_do_not_count(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = {"name": "tiny_imagenet"}
    assert size_of(plan_of(dataset=name)).shape.classes == 200
    for wnid in ("n1", "n2"):
        Path("data/tiny-imagenet-200/train", wnid).mkdir(parents=True)
    assert size_of(plan_of(dataset=name)) == Size(1000, 100, Shape(3, 64, 2))


def test_teachers_that_label_online_are_trained():
    online = {**SMALL["evaluate"], "kd": {"architectures": ["convnet"]}}
    plan = plan_of(distill={"methods": ["random_hard"]}, evaluate=online)
    assert jobs(plan)["teachers"] == 1
    (work,) = of_stage(plan, "teachers")
    assert work.jobs == 1 and work.steps == 7 * 15 + 1


def test_times_give_the_speed_back(monkeypatch):
    true = speed.Speed("cpu", 2e-11, 3e-9, 1e-3)

    def seconds(spec: Spec, batch: int, compute: object) -> float:
        cost = cost_of(spec.network(torch.device("cpu")), spec.shape)
        images = 3 * batch
        return images * (cost.flops * true.flop_s + cost.values * true.value_s) + true.step_s

    monkeypatch.setattr(speed, "step_seconds", seconds)
    found = speed.measured()
    for key in ("flop_s", "value_s", "step_s"):
        assert getattr(found, key) == pytest.approx(getattr(true, key))


@pytest.mark.parametrize(("left", "expected"), [(0.3, 0.3), (-0.2, 0.0), (1.4, 1.0)])
def test_what_compiling_leaves_of_writing_values(monkeypatch, left, expected):
    plain = speed.Speed("cpu", 2e-11, 3e-9, 1e-3)

    def seconds(spec: Spec, batch: int, compute: Compute) -> float:
        assert compute.compile == "on"
        cost = cost_of(spec.network(torch.device("cpu")), spec.shape)
        own = cost.flops * plain.flop_s + left * cost.values * plain.value_s
        return 3 * batch * own + plain.step_s

    monkeypatch.setattr(speed, "step_seconds", seconds)
    assert speed.fused_share(plain) == pytest.approx(expected)


@pytest.mark.parametrize(("load", "told"), [(0.9, None), (3.2, "keep 3.2 of 4 cores busy")])
def test_a_busy_machine_is_told(monkeypatch, load, told):
    monkeypatch.setattr(speed.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(speed.os, "getloadavg", lambda: (load, 0.0, 0.0))
    found = speed.busy()
    assert found is None if told is None else told in found


def test_long_jobs_are_compiled():
    own = speed.Speed("cpu", 1e-11, 1e-9, 1e-3, fused=0.5)
    short = Work("distill", 1e9, 1e9, 10, compile_from_s=20.0)
    assert own.seconds(short) == pytest.approx(0.01 + 1 + 0.01)
    long = Work("distill", 1e13, 1e12, 10, compile_from_s=20.0)
    assert own.seconds(long) == pytest.approx(100 + 500 + 0.01 + speed.COMPILE_S)
    plain = Work("distill", 1e13, 1e12, 10, compile_from_s=math.inf)
    assert own.seconds(plain) == pytest.approx(100 + 1000 + 0.01)


@pytest.fixture
def passed(monkeypatch):
    """Images that went forward through networks, by call."""
    counts, module_call = [], torch.nn.Linear.__call__

    def noted(layer: torch.nn.Linear, x: Tensor) -> Tensor:
        counts.append(x.shape[0])
        return module_call(layer, x)

    monkeypatch.setattr(torch.nn.Linear, "__call__", noted)
    return counts


def test_a_round_of_apm_is_counted(passed, teachers, digits, cpu):
    plan = plan_of(
        distill={"methods": ["apm"], "rounds": 8},
        recipe={"epochs": 6, "batch": 16},
        methods={"apm": {"checkpoints": 2, "period": 3}},
    )
    method = methods.build(plan.distill("apm"))
    job = Job(digits, teachers, cpu, ipc=2, shard=0, rounds=8, seed=0)
    state = method.start(job)
    del passed[:]
    for index in range(3):
        method.round(state, index)
    # 7 passes of a student and its labels, then 3 rounds through teacher and two checkpoints
    assert sum(passed) == 7 * 20 + 20 + 3 * 3 * 20
    work = method.passes(Extent(20, 10, 1438, 9))
    assert 3 * work.images == pytest.approx(3 * 7 * 20 + 20 + 2 * 3 * 3 * 20)
    assert 3 * work.steps == pytest.approx(7 * 2 + 1 + 3 * 3)


def test_every_method_says_its_work_or_that_it_cannot():
    names = [*RunSettings().methods.model_dump()]
    pools = {key: {"epochs": 60, "snapshots": True} for key in ("teachers", "experts")}
    unknown = set()
    for name in names:
        plan = plan_of(distill={"methods": [name], "rounds": 3}, **pools)
        method = methods.build(plan.distill(name))
        work = method.passes(Extent(20, 10, 1438, 4))
        if work is None:
            unknown.add(name)
        elif name not in ("imported", "random"):
            assert work.images > 0 and work.steps > 0, name
    assert unknown == {"rcig"}
