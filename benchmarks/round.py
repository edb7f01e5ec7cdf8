"""The image update of APM: K checkpoints and the teacher, against the plain loop.

    python -m benchmarks.round

The plain loop sends every segment through teacher and student once per checkpoint, and once more
through the teacher for its cross-entropy, in float32, as the published code does. Ours sends it
through the teacher once for all checkpoints.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from apm_core.device import Compute, choose, keep_freed_memory
from apm_core.methods.base import Job, State
from benchmarks.measure import RESULTS, machine, ratio, show, together, write
from benchmarks.workload import apm, job, spec_of, variants

SIZES = ((128, 50, 100), (32, 10, None))  # width, IPC, segment


def plain_update(given: Job, students: Tensor, images: Tensor, classes: Tensor, *, keep: bool):  # noqa: ANN201
    """One image gradient of the plain loop, as a function of no arguments."""
    spec, device = given.teachers.spec, given.compute.device
    teacher, student = spec.build().to(device), spec.build().to(device)
    size = given.segment or len(images)

    def update() -> Tensor:
        keep_freed_memory(keep)
        leaf = images.clone().requires_grad_()
        for at in range(0, len(images), size):
            part = slice(at, at + size)
            for vector in students:
                torch.nn.utils.vector_to_parameters(vector, student.parameters())
                apart = (student(leaf[part]) - teacher(leaf[part])).abs().mean(1)
                (-apart.log().sum() / len(images)).backward()
            ce = F.cross_entropy(teacher(leaf[part]), classes[part], reduction="sum")
            (0.1 * ce / len(images)).backward()
        return leaf.grad

    return update


def our_update(given: Job, students: Tensor, compute: Compute):  # noqa: ANN201
    """The same by the method itself."""
    method = apm()
    given = replace(given, compute=compute)
    state: State = method.init(given)
    state |= {"batch": torch.arange(len(state["images"]), device=compute.device)}
    state |= {"students": students, "teacher": 0}
    method._place(state, state["batch"])

    def update() -> Tensor:
        keep_freed_memory()
        return method._image_gradient(state, "benchmark")[0]

    return update


def main() -> None:
    """Measure, print, write."""
    compute = choose("auto", "auto", "on", print)
    report = {**machine(), "sizes": []}
    for width, ipc, segment in SIZES:
        torch._dynamo.reset()
        spec = spec_of(width)
        given = job(spec, compute, ipc, segment=segment)
        images, classes = given.real_images()
        students = torch.stack([spec.fresh("student", k) for k in range(5)]).to(compute.device)
        updates = {"plain": plain_update(given, students, images, classes, keep=False)}
        if compute.device.type == "cpu":
            updates["plain, memory kept"] = plain_update(
                given, students, images, classes, keep=True
            )
        for name, path in variants(compute).items():
            updates[name] = our_update(given, students, path)
        times = together(updates, compute, repetitions=3)
        rows = [
            {"path": name, "ms": 1e3 * sorted(of)[1], "x plain": ratio(times, name, "plain")}
            for name, of in times.items()
        ]
        size = {"width": width, "images": len(images), "segment": segment or len(images)}
        report["sizes"].append({**size, "checkpoints": 5, "paths": rows})
        show(", ".join(f"{k} {v}" for k, v in size.items()), rows)
    write(RESULTS / f"round_{compute.device.type}.json", report)


if __name__ == "__main__":
    main()
