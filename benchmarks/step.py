"""Training steps: our paths against the plain loop, at the sizes that distillation uses.

    python -m benchmarks.step

The plain loop is what the published code does: float32, an optimizer over separate parameters, DSA,
and the accuracy of every batch read back. "plain" is a process that changes nothing else; "plain,
memory kept" runs with our setting of the CPU's memory allocator. "% of rate" compares with a
product of matrices in the same precision and the same minute. On a GPU a timed training has many
passes, because what `Trainer.fit` does once would count; on a CPU a pass takes seconds.
"""

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from apm_core.data.examples import Examples
from apm_core.nets.spec import Spec
from apm_core.runtime import streams
from apm_core.runtime.device import Compute
from apm_core.training import augment
from apm_core.training.inference import forward_flops
from apm_core.training.trainer import Trainer
from benchmarks.measure import (
    Elsewhere,
    matrix_product,
    options,
    ratio,
    record,
    serve,
    show,
    together,
)
from benchmarks.workload import STUDENT, examples, spec_of, variants

SIZES = ((128, 256), (32, 256), (32, 100))  # width, batch
QUICK_SIZES = ((8, 16),)
STEPS = 4  # batches of a pass
PASSES = {"cpu": 1, "cuda": 100}  # of a timed training


def plain_pass(spec: Spec, data: Examples, batch: int, compute: Compute) -> Callable[[], float]:
    """A function that trains for one pass of the plain loop and returns the training accuracy."""
    net = spec.build().to(compute.device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    random = streams.generator("plain")

    def one_pass() -> float:
        hits = 0
        for index in torch.randperm(len(data.targets), generator=random).split(batch):
            drawn = augment.draw(STUDENT.augment, len(index), random)
            index, drawn = index.to(compute.device), drawn.to(compute.device)
            logits = net(augment.augment(data.images[index], drawn))
            loss = (logits - data.targets[index]).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            hits += int((logits.argmax(1) == data.targets[index].argmax(1)).sum())
        return hits / len(data.targets)

    return one_pass


def our_passes(spec: Spec, data: Examples, batch: int, compute: Compute) -> Callable[[], object]:
    """A function that trains with `Trainer` for the passes of a timed training."""
    recipe = replace(STUDENT, batch=batch, passes=PASSES[compute.device.type])
    trainer = Trainer(spec.network(compute.device), recipe, compute, data, networks=10**6)
    start = spec.fresh("start")
    return lambda: trainer.fit(start, "benchmark")


def measured(width: int, batch: int, compute: Compute) -> dict[str, Any]:
    """Measure one size: a row per path, and the rate of matrix products."""
    torch._dynamo.reset()
    spec, data = spec_of(width), examples(STEPS * batch, compute)
    flops = 3 * forward_flops(spec.network(compute.device), spec.shape.image, compute)
    paths = variants(compute)
    device = compute.device
    plain = Elsewhere("benchmarks.step", "--device", device, "--plain", width, batch)
    trainings: dict[str, Callable[[], object]] = {"plain": plain}
    if device.type == "cpu":
        trainings["plain, memory kept"] = plain_pass(spec, data, batch, compute)
    trainings |= {name: our_passes(spec, data, batch, path) for name, path in paths.items()}
    products = {f"{path.precision} matrices": matrix_product(path) for path in paths.values()}
    functions = trainings | {kind: product for kind, (product, _) in products.items()}
    times = together(functions, compute)
    plain.close()
    for name in paths:  # of a pass
        times[name] = [seconds / PASSES[device.type] for seconds in times[name]]
    rates = {
        kind: operations / statistics.median(times[kind])
        for kind, (_, operations) in products.items()
    }
    rows = []
    for name in trainings:
        speed = len(data.targets) / statistics.median(times[name])
        path = paths.get(name)
        share = 100 * speed * flops / rates[f"{path.precision} matrices"] if path else None
        faster = ratio(times, name, "plain")
        rows.append({"path": name, "images/s": speed, "x plain": faster, "% of rate": share})
    gflops = {kind: rate / 1e9 for kind, rate in rates.items()}
    speeds = ", ".join(f"{kind} {rate:.0f} GFLOP/s" for kind, rate in gflops.items())
    show(f"width {width}, batch {batch}, {flops / 1e9:.3g} GFLOP per image; {speeds}", rows)
    return {"width": width, "batch": batch, "matrix_gflops": gflops, "paths": rows}


def report(compute: Compute, quick: bool) -> dict[str, Any]:
    """Measure every size and print a table for each."""
    sizes = QUICK_SIZES if quick else SIZES
    return {"sizes": [measured(*size, compute) for size in sizes]}


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("--plain", nargs=2, type=int, metavar=("WIDTH", "BATCH"))
    given = parser.parse_args()
    if given.plain:
        width, batch = given.plain
        device = Compute(torch.device(given.device))  # its allocator stays as it comes
        serve(plain_pass(spec_of(width), examples(STEPS * batch, device), batch, device))
    else:
        record("step", report, given)
