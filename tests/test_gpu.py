"""What only a GPU can show: captured steps, its memory, shards that live beside it."""

import pytest
import torch
from torch import Tensor

from apm_core.data.examples import Examples
from apm_core.nets.base import Shape
from apm_core.nets.spec import Spec
from apm_core.runtime import memory, streams
from apm_core.runtime.device import Compute, choose
from apm_core.training.inference import labeller, logits
from apm_core.training.recipe import Recipe
from apm_core.training.trainer import Trainer, Training, fit_together
from benchmarks.workload import apm, job

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

SPEC = Spec("convnet", Shape(3, 16, 4), width=16, depth=2)
RECIPES = {
    "sgd": Recipe(passes=4, lr=0.01, batch=16, drop=2, loss="l1"),
    "adam": Recipe(
        passes=6, lr=1e-3, batch=16, loss="half_mse", optimizer="adam", schedule="cosine"
    ),
    "flat": Recipe(passes=4, lr=0.01, batch=16, drop=2, loss="l1", rho=0.3, alpha=0.5),
    "online": Recipe(
        passes=6,
        lr=1e-3,
        batch=16,
        loss="kl",
        temperature=4.0,
        optimizer="adamw",
        schedule="half_cosine",
        augment="flip",
        cutmix=True,
    ),
}


def on_gpu(precision: str = "float32", compile: str = "off") -> Compute:
    """As a job chooses it, but any note, such as that of a fallback, fails the test."""
    return choose("cuda", precision, compile, report=pytest.fail)


def moved(recipe: Recipe, compute: Compute) -> Tensor:
    """By how much two networks, trained one after the other in the memory of one trainer, change
    their logits (2, 50, 4).
    """
    random, start = streams.generator("examples"), SPEC.fresh("start")
    images, targets = (torch.randn(50, *s, generator=random) for s in ((3, 16, 16), (4,)))
    given = Examples(images.to(compute.device), targets.to(compute.device))
    label = None
    if recipe.cutmix:
        teacher = SPEC.network(compute.device)
        teacher.load(SPEC.fresh("teacher"))
        label = labeller(teacher, compute)
    net = SPEC.network(compute.device)
    trainer = Trainer(net, recipe, compute, given, networks=1, label=label)
    trainer.net.load(start)
    said = [logits(trainer.net, given.images, compute.exact())]
    for network in range(2):  # the second replays what the first captured
        trainer.fit(start, network)
        said.append(logits(trainer.net, given.images, compute.exact()))
    return (torch.stack(said[1:]) - said[0]).cpu()


@pytest.mark.parametrize("compile", ["auto", "on"])
@pytest.mark.parametrize("name", RECIPES)
def test_captured_steps_equal_plain_ones(name, compile, ran):
    compute = on_gpu(compile=compile)
    assert compute.graphs and not on_gpu().graphs
    found = moved(RECIPES[name], compute)
    # "auto" captures so short a training, but does not compile it
    assert set(ran) == ({"forward", "backward"} if compile == "on" else set())
    ran.clear()
    plain = moved(RECIPES[name], on_gpu())
    assert ran == []
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))


@pytest.mark.parametrize("name", RECIPES)
def test_compiled_and_captured_bf16_is_as_near_to_float32_as_plain_bf16(name, ran):
    def strays(compute: Compute) -> float:
        return float((moved(RECIPES[name], compute) - exact).norm() / exact.norm())

    exact = moved(RECIPES[name], on_gpu())
    rounding = strays(on_gpu("bf16"))
    assert ran == []
    assert 1e-4 < rounding < 0.1
    assert strays(on_gpu("bf16", "on")) < 2 * rounding
    assert set(ran) == {"forward", "backward"}


@pytest.mark.parametrize("compile", ["off", "on"])
def test_trainings_side_by_side_equal_each_alone(compile):
    compute, random = on_gpu(compile=compile), streams.generator("examples")
    images, targets = (torch.randn(50, *s, generator=random) for s in ((3, 16, 16), (4,)))
    given = Examples(images.to(compute.device), targets.to(compute.device))

    def trainer() -> Trainer:
        net = SPEC.network(compute.device)
        return Trainer(net, RECIPES["sgd"], compute, given, networks=1)

    starts = [Training(SPEC.fresh("start", n), (n,)) for n in range(3)]
    together = [trainer() for _ in starts]
    for _ in range(2):  # the second time, all replay what the first captured
        fit_together(together, starts)
    for one, training in zip(together, starts, strict=True):
        alone = trainer()
        alone.fit(training.start, *training.stream)
        torch.testing.assert_close(one.net.vector, alone.net.vector, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("segment", [None, 7])
def test_a_shard_in_host_memory_moves_as_one_on_the_device(segment):
    gpu, results = on_gpu(), []
    for home in (None, torch.device("cpu")):
        method = apm(epochs=5, batch=20)
        given = job(SPEC, gpu, 10, segment=segment, home=home)
        state = method.start(given)
        for index in range(4):
            method.round(state, index)
        assert state["images"].device.type == (home or gpu.device).type
        results.append(state["images"].cpu())
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


def test_peak_memory_follows_the_segment_not_the_shard():
    gpu = on_gpu()

    def peak(ipc: int, segment: int) -> int:
        memory.reset_peak(gpu)
        method = apm(epochs=5, batch=200)
        state = method.start(job(SPEC, gpu, ipc, segment=segment, home=torch.device("cpu")))
        method.round(state, 0)
        return memory.peak(gpu)

    assert peak(1000, 20) < 1.2 * peak(50, 20)
