"""The work that `benchmarks.versus` times, in the checkout that this process imports.

It is run as a script, so that an older checkout, which has no such file, is measured by this one.
Lines ask for the sizes or for the seconds of a piece of work; lines answer.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from apm_core.runtime.device import choose
from apm_core.training.inference import forward_flops
from apm_core.training.trainer import Trainer
from benchmarks import round as rounds
from benchmarks.measure import matrix_product
from benchmarks.workload import STUDENT, examples, spec_of

STEPS = ((128, 128), (32, 256), (32, 100))  # width, batch
UPDATES = ((128, 5, 50), (32, 10, 100))  # width, IPC, segment
Work = dict[str, tuple[Callable[[], object], float, float]]  # function, images, FLOPs of one call


def work() -> Work:
    """What is timed, by the tree that the process imports."""
    compute, found = choose("auto", "auto", "on"), {}
    for width, batch in STEPS:
        spec, data = spec_of(width), examples(2 * batch, compute)
        net, recipe = spec.network(compute.device), replace(STUDENT, batch=batch)
        forward = forward_flops(net, spec.shape.image, compute)
        trainer = Trainer(net, recipe, compute, data, networks=10**6)
        function = partial(trainer.fit, spec.fresh("start"), "versus")
        name = f"step of width {width}, batch {batch}"
        found[name] = (function, 2 * batch, 3 * forward * 2 * batch)
    for size in UPDATES:
        task, students = rounds.work(*size, compute)
        width, ipc, _ = size
        spec, images = spec_of(width), 10 * ipc
        forward = forward_flops(spec.network(compute.device), spec.shape.image, compute)
        networks = rounds.CHECKPOINTS + 1  # forward and back to the images, not to the weights
        function = rounds.our_update(task, students, compute)
        name = f"update of width {width}, {images} images"
        found[name] = (function, images, 2 * networks * forward * images)
    product, operations = matrix_product(compute)
    found["matrices"] = (product, 1, operations)
    return found


def main() -> None:
    """Answer the lines of standard input, once all work is warm."""
    found = work()
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
