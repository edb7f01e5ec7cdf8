"""Training steps: our paths against the plain loop, at the sizes that distillation uses.

    python -m benchmarks.step

The plain loop is what the published code does: float32, an optimizer over separate parameters, DSA,
and the accuracy of every batch read back. It runs with the allocator as it comes ("plain") and with
ours, which keeps freed memory ("plain, memory kept"; on a CPU).
"""

import torch

from apm_core import augment, rng
from apm_core.device import Compute, choose, keep_freed_memory
from apm_core.nets.spec import Spec
from apm_core.train import Examples, Trainer, forward_flops
from benchmarks.measure import RESULTS, machine, matrix_rate, ratio, show, together, write
from benchmarks.workload import STUDENT, examples, spec_of, variants

SIZES = ((128, 256), (32, 256), (32, 100))  # width, batch
STEPS = 4  # batches of a pass


def plain_pass(spec: Spec, given: Examples, batch: int, compute: Compute, *, keep: bool):  # noqa: ANN201
    """One pass of the plain loop over `given`, as a function of no arguments."""
    net = spec.build().to(compute.device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    random = rng.generator("plain")

    def one_pass() -> float:
        keep_freed_memory(keep)
        hits = 0
        for index in torch.randperm(len(given.targets), generator=random).split(batch):
            drawn = augment.draw(STUDENT.augment, len(index), random)
            index, drawn = index.to(compute.device), drawn.to(compute.device)
            logits = net(augment.augment(given.images[index], drawn))
            loss = (logits - given.targets[index]).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            hits += int((logits.argmax(1) == given.targets[index].argmax(1)).sum())
        return hits / len(given.targets)

    return one_pass


def our_pass(spec: Spec, given: Examples, batch: int, compute: Compute):  # noqa: ANN201
    """One pass of `Trainer`, as a function of no arguments."""
    recipe = STUDENT.with_epochs(0)
    recipe = type(recipe)(**{**recipe.to_dict(), "batch": batch})
    trainer = Trainer(spec.memory(compute.device), recipe, compute, given, networks=10**6)
    start = spec.fresh("start")

    def one_pass() -> None:
        keep_freed_memory()
        trainer.fit(start, "benchmark")

    return one_pass


def main() -> None:
    """Measure, print, write."""
    compute = choose("auto", "auto", "on", print)
    rates = {name: matrix_rate(path) for name, path in variants(compute).items()}
    report = {**machine(), "matrix_rate": rates, "sizes": []}
    for width, batch in SIZES:
        torch._dynamo.reset()
        spec, given = spec_of(width), examples(STEPS * batch, compute)
        flops = 3 * forward_flops(spec.memory(compute.device), spec.shape.image, compute)
        passes = {"plain": plain_pass(spec, given, batch, compute, keep=False)}
        if compute.device.type == "cpu":
            passes["plain, memory kept"] = plain_pass(spec, given, batch, compute, keep=True)
        passes |= {
            name: our_pass(spec, given, batch, path) for name, path in variants(compute).items()
        }
        times = together(passes, compute)
        rows = []
        for name, of in times.items():
            speed = len(given.targets) / sorted(of)[len(of) // 2]
            faster = ratio(times, name, "plain")
            share = 100 * speed * flops / rates[name] if name in rates else None
            rows.append({"path": name, "images/s": speed, "x plain": faster, "% of rate": share})
        report["sizes"].append({"width": width, "batch": batch, "paths": rows})
        show(f"width {width}, batch {batch}, {flops / 1e9:.3g} GFLOP per image", rows)
    write(RESULTS / f"step_{compute.device.type}.json", report)


if __name__ == "__main__":
    main()
