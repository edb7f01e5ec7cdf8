"""Training steps: our paths against the plain loop, at the sizes that distillation uses.

    python -m benchmarks.step

The plain loop is what the published code does: float32, an optimizer over separate parameters, DSA,
and the accuracy of every batch read back. "plain" is a process that changes nothing else; "plain,
memory kept" runs with our setting of the CPU's memory allocator. "% of rate" compares with a
product of matrices in the same precision and the same minute.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from apm_core.data.examples import Examples
from apm_core.nets.spec import Spec
from apm_core.runtime import streams
from apm_core.runtime.device import Compute, choose
from apm_core.training import augment
from apm_core.training.inference import forward_flops
from apm_core.training.trainer import Trainer
from benchmarks.measure import (
    RESULTS,
    Elsewhere,
    machine,
    matrix_product,
    ratio,
    serve,
    show,
    together,
    write,
)
from benchmarks.workload import STUDENT, examples, spec_of, variants

SIZES = ((128, 256), (32, 256), (32, 100))  # width, batch
STEPS = 4  # batches of a pass


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


def our_pass(spec: Spec, data: Examples, batch: int, compute: Compute) -> Callable[[], object]:
    """A function that trains for one pass of `Trainer`."""
    recipe = replace(STUDENT, batch=batch)
    trainer = Trainer(spec.network(compute.device), recipe, compute, data, networks=10**6)
    start = spec.fresh("start")
    return lambda: trainer.fit(start, "benchmark")


def measured(width: int, batch: int, compute: Compute) -> dict[str, Any]:
    """Measure one size: a row per path, and the rate of matrix products."""
    torch._dynamo.reset()
    spec, data = spec_of(width), examples(STEPS * batch, compute)
    flops = 3 * forward_flops(spec.network(compute.device), spec.shape.image, compute)
    paths = variants(compute)
    plain = Elsewhere("benchmarks.step", "--plain", width, batch)
    passes: dict[str, Callable[[], object]] = {"plain": plain}
    if compute.device.type == "cpu":
        passes["plain, memory kept"] = plain_pass(spec, data, batch, compute)
    passes |= {name: our_pass(spec, data, batch, path) for name, path in paths.items()}
    products = {f"{path.precision} matrices": matrix_product(path) for path in paths.values()}
    times = together(passes | {kind: product for kind, (product, _) in products.items()}, compute)
    plain.close()
    rates = {
        kind: operations / statistics.median(times[kind])
        for kind, (_, operations) in products.items()
    }
    rows = []
    for name in passes:
        speed = len(data.targets) / statistics.median(times[name])
        path = paths.get(name)
        share = 100 * speed * flops / rates[f"{path.precision} matrices"] if path else None
        faster = ratio(times, name, "plain")
        rows.append({"path": name, "images/s": speed, "x plain": faster, "% of rate": share})
    gflops = {kind: rate / 1e9 for kind, rate in rates.items()}
    speeds = ", ".join(f"{kind} {rate:.0f} GFLOP/s" for kind, rate in gflops.items())
    show(f"width {width}, batch {batch}, {flops / 1e9:.3g} GFLOP per image; {speeds}", rows)
    return {"width": width, "batch": batch, "matrix_gflops": gflops, "paths": rows}


def main() -> None:
    """Measure, print, write."""
    compute = choose("auto", "auto", "on", print)
    sizes = [measured(*size, compute) for size in SIZES]
    write(RESULTS / f"step_{compute.device.type}.json", {**machine(), "sizes": sizes})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--plain", nargs=2, type=int, metavar=("WIDTH", "BATCH"))
    if size := parser.parse_args().plain:
        device = Compute(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        data = examples(STEPS * size[1], device)
        serve(plain_pass(spec_of(size[0]), data, size[1], device))
    else:
        main()
