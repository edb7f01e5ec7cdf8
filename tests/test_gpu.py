"""What only a GPU can show: captured steps, its memory, shards that live beside it."""

from dataclasses import replace

import pytest
import torch

from apm_core.data.examples import Examples
from apm_core.nets.base import Shape
from apm_core.nets.spec import Spec
from apm_core.runtime import memory, streams
from apm_core.runtime.device import Compute
from apm_core.training.recipe import Recipe
from apm_core.training.trainer import Trainer
from benchmarks.workload import apm, job

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

GPU = Compute(torch.device("cuda"), compile="off")
SPEC = Spec("convnet", Shape(3, 16, 4), width=16, depth=2)


def examples(device: torch.device) -> Examples:
    random = streams.generator("examples")
    images, targets = torch.randn(50, 3, 16, 16, generator=random), torch.randn(50, 4)
    return Examples(images.to(device), targets.to(device))


@pytest.fixture(autouse=True)
def exact_matrices():
    """TF32 rounds to ten bits: off, so that float32 can be compared."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = allowed


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(passes=4, lr=0.05, batch=16, drop=2, loss="l1"),
        Recipe(passes=6, lr=1e-3, batch=16, loss="half_mse", optimizer="adam", schedule="cosine"),
        Recipe(passes=4, lr=0.05, batch=16, drop=2, loss="l1", rho=0.3, alpha=0.5),
    ],
    ids=["sgd", "adam", "flat"],
)
def test_captured_steps_equal_plain_ones(recipe):
    given, start, results = examples(GPU.device), SPEC.fresh("start"), []
    for compute in (GPU, replace(GPU, compile="on"), replace(GPU, compile="auto")):
        trainer = Trainer(SPEC.network(GPU.device), recipe, compute, given, networks=1)
        for network in range(2):  # the second replays what the first captured
            trainer.fit(start, network)
        results.append(trainer.net.snapshot().cpu() - start)
    for found in results[1:]:
        scale = float(results[0].abs().max())
        torch.testing.assert_close(found, results[0], rtol=1e-3, atol=1e-3 * scale)


@pytest.mark.parametrize("segment", [None, 7])
def test_a_shard_in_host_memory_moves_as_one_on_the_device(segment):
    results = []
    for home in (None, torch.device("cpu")):
        method = apm(epochs=5, batch=20)
        given = job(SPEC, GPU, 10, segment=segment, home=home)
        state = method.start(given)
        for index in range(4):
            method.round(state, index)
        assert state["images"].device.type == (home or GPU.device).type
        results.append(state["images"].cpu())
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


def test_peak_memory_follows_the_segment_not_the_shard():
    def peak(ipc: int, segment: int) -> int:
        memory.reset_peak(GPU)
        method = apm(epochs=5, batch=200)
        state = method.start(job(SPEC, GPU, ipc, segment=segment, home=torch.device("cpu")))
        method.round(state, 0)
        return memory.peak(GPU)

    assert peak(1000, 20) < 1.2 * peak(50, 20)
