"""The image update of APM: K checkpoints and the teacher, against the plain loop.

    python -m benchmarks.round

The plain loop sends every segment through teacher and student once per checkpoint, and once more
through the teacher for its cross-entropy, in float32, as the published code does. Ours sends it
through the teacher once for all checkpoints.
"""

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from apm_core.methods.apm.apm import APM
from apm_core.methods.base import Job
from apm_core.methods.movers import State
from apm_core.runtime.device import Compute
from benchmarks.measure import Elsewhere, options, ratio, record, serve, show, together
from benchmarks.workload import apm, job, spec_of, variants

SIZES = ((128, 20, 100), (32, 10, 100))  # width, IPC, segment
QUICK_SIZES = ((4, 1, 5),)
CHECKPOINTS = 5


def plain_update(task: Job, students: Tensor) -> Callable[[], Tensor]:
    """A function that computes one image gradient (N, C, H, W) by the plain loop.

    `students` is (K, P), the parameters of the checkpoints.
    """
    images, classes = task.real_images()
    spec, device = task.teachers.spec, task.compute.device
    teacher, student = spec.build().to(device), spec.build().to(device)
    torch.nn.utils.vector_to_parameters(task.teachers.vectors[0].to(device), teacher.parameters())
    size = task.segment or len(images)

    def update() -> Tensor:
        leaf = images.clone().requires_grad_()
        for at in range(0, len(images), size):
            part = slice(at, at + size)
            for vector in students:
                torch.nn.utils.vector_to_parameters(vector, student.parameters())
                distance = (student(leaf[part]) - teacher(leaf[part])).abs().mean(1)
                (-distance.log().sum() / len(images)).backward()
            ce = F.cross_entropy(teacher(leaf[part]), classes[part], reduction="sum")
            (0.1 * ce / len(images)).backward()
        return leaf.grad

    return update


def placed(task: Job, students: Tensor, compute: Compute) -> tuple[APM, State]:
    """APM and its state before the image update of a round in which `students` were trained."""
    method = apm()
    task = replace(task, compute=compute)
    state: State = method.start(task)
    state |= {"batch": torch.arange(len(state["images"]), device=compute.device)}
    state |= {"students": students, "teacher": 0}
    method.place_batch(state, state["batch"])
    task.teachers.load(0)
    return method, state


def our_update(task: Job, students: Tensor, compute: Compute) -> Callable[[], Tensor]:
    """A function that computes the same gradient by APM itself."""
    method, state = placed(task, students, compute)
    return lambda: method.image_gradient(state, "benchmark")[0]


def work(width: int, ipc: int, segment: int | None, compute: Compute) -> tuple[Job, Tensor]:
    """The job of a shard, and the checkpoints (K, P) of a student."""
    spec = spec_of(width)
    students = torch.stack([spec.fresh("student", k) for k in range(CHECKPOINTS)])
    return job(spec, compute, ipc, segment=segment), students.to(compute.device)


def measured(size: tuple[int, int, int], compute: Compute) -> list[dict[str, Any]]:
    """Measure one size: a row per path."""
    torch._dynamo.reset()
    task, students = work(*size, compute)
    plain = Elsewhere("benchmarks.round", "--device", compute.device, "--plain", *size)
    updates: dict[str, Callable[[], object]] = {"plain": plain}
    if compute.device.type == "cpu":
        updates["plain, memory kept"] = plain_update(task, students)
    updates |= {name: our_update(task, students, path) for name, path in variants(compute).items()}
    times = together(updates, compute, repetitions=3)
    plain.close()
    rows = [
        {
            "path": name,
            "ms": 1e3 * statistics.median(seconds),
            "x plain": ratio(times, name, "plain"),
        }
        for name, seconds in times.items()
    ]
    show(f"width {size[0]}, {10 * size[1]} images, segments of {size[2]}", rows)
    return rows


def report(compute: Compute, quick: bool) -> dict[str, Any]:
    """Measure every size and print a table for each."""
    names = ("width", "ipc", "segment")
    sizes = [
        {**dict(zip(names, size, strict=True)), "paths": measured(size, compute)}
        for size in (QUICK_SIZES if quick else SIZES)
    ]
    return {"checkpoints": CHECKPOINTS, "sizes": sizes}


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("--plain", nargs=3, type=int, metavar=("WIDTH", "IPC", "SEGMENT"))
    given = parser.parse_args()
    if given.plain:
        device = Compute(torch.device(given.device))  # its allocator stays as it comes
        serve(plain_update(*work(*given.plain, device)))
    else:
        record("round", report, given)
