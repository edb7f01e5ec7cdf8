"""The work that `benchmarks.versus` times, in the checkout that this process imports.

It is run as a script, so that an older checkout, which has no such file, is measured by this one.
Its argument says which work: "compiled", or "plain", which short jobs do. Lines ask for the sizes
or for the seconds of a piece of work; lines answer.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor

from apm_core.nets.flat import FlatNet
from apm_core.nets.nasbench201 import network, parse, sample
from apm_core.runtime.device import Compute, choose
from apm_core.training.inference import forward_flops, logits
from apm_core.training.trainer import Trainer
from benchmarks import round as rounds
from benchmarks.measure import matrix_product
from benchmarks.workload import STUDENT, examples, spec_of

STEPS = ((128, 128), (32, 256), (32, 100))  # width, batch
UPDATES = ((128, 5, 50), (32, 10, 100))  # width, IPC, segment
CELLS = 3  # networks of NAS-Bench-201, of one cell a stage
Timed = tuple[Callable[[], object], float, float]  # function, images, FLOPs of one call


def compiled() -> dict[str, Timed]:
    """Steps and image updates as in long jobs."""
    compute = choose("auto", "auto", "on")
    found = _steps(compute)
    for size in UPDATES:
        task, students = rounds.work(*size, compute)
        width, ipc, _ = size
        spec, images = spec_of(width), 10 * ipc
        forward = forward_flops(spec.network(compute.device), spec.shape.image, compute)
        networks = rounds.CHECKPOINTS + 1  # forward and back to the images, not to the weights
        function = rounds.our_update(task, students, compute)
        name = f"update of width {width}, {images} images"
        found[name] = (function, images, 2 * networks * forward * images)
    return {**found, "matrices": _product(compute)}


def plain() -> dict[str, Timed]:
    """Steps as in short jobs, predictions in float32 as scores need them, and steps of networks
    that are never compiled.
    """
    compute = choose("auto", "auto", "off")
    found = _steps(compute)
    for width, batch in STEPS:
        spec, data = spec_of(width), examples(batch, compute)
        net = spec.network(compute.device)
        forward = forward_flops(net, spec.shape.image, compute)
        function = partial(logits, net, data.images, compute.exact(), batch=batch)
        found[f"predictions of width {width}, batch {batch}"] = (function, batch, forward * batch)
    shape = spec_of(STEPS[0][0]).shape
    nets = [FlatNet(network(parse(arch), shape, cells=1)) for arch in sample(CELLS, seed=0)]
    steps = [_step(net, net.snapshot(), 64, compute) for net in nets]

    def one_of_each() -> None:
        for function, _, _ in steps:
            function()

    images, flops = (sum(sizes) for sizes in zip(*(step[1:] for step in steps), strict=True))
    found[f"steps of {CELLS} networks of NAS-Bench-201, batch 64"] = (one_of_each, images, flops)
    return {**found, "matrices": _product(compute)}


def _steps(compute: Compute) -> dict[str, Timed]:
    found = {}
    for width, batch in STEPS:
        spec = spec_of(width)
        start = spec.fresh("start")
        step = _step(spec.network(compute.device), start, batch, compute)
        found[f"step of width {width}, batch {batch}"] = step
    return found


def _step(net: FlatNet, start: Tensor, batch: int, compute: Compute) -> Timed:
    """Two steps of a training from `start` (P,)."""
    data, recipe = examples(2 * batch, compute), replace(STUDENT, batch=batch)
    forward = forward_flops(net, data.images.shape[1:], compute)
    trainer = Trainer(net, recipe, compute, data, networks=10**6)
    return partial(trainer.fit, start, "versus"), 2 * batch, 3 * forward * 2 * batch


def _product(compute: Compute) -> Timed:
    product, operations = matrix_product(compute)
    return product, 1, operations


WORK = {"compiled": compiled, "plain": plain}


def main() -> None:
    """Answer the lines of standard input, once all work is warm."""
    found = WORK[sys.argv[1]]()
    for function, _, _ in found.values():
        function()
        function()
    for line in sys.stdin:
        name = line.rstrip("\n")
        if name == "sizes":
            answer = json.dumps({name: sizes for name, (_, *sizes) in found.items()})
        else:
            started = time.perf_counter()
            found[name][0]()
            answer = str(time.perf_counter() - started)
        print(answer, flush=True)


if __name__ == "__main__":
    main()
