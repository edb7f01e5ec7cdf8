"""Which kernels a call runs, and for how long."""

from collections import defaultdict
from collections.abc import Callable

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from apm_core.runtime.device import Compute
from benchmarks.gpu.record import Figures

SHOWN = 30


def table(function: Callable[[], object], compute: Compute) -> Figures:
    """The kernels of one call (on a CPU: operators), those that take longest first; their sum."""
    cuda = compute.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        function()
        compute.clock()
    times: dict[str, list[float]] = defaultdict(list)
    for event in profiler.events():
        if not cuda:
            times[event.name].append(event.self_cpu_time_total)
        elif event.device_type == DeviceType.CUDA and not getattr(
            event, "is_user_annotation", False
        ):
            times[event.name].append(event.time_range.elapsed_us())
    order = sorted(times, key=lambda name: -sum(times[name]))
    return {
        "busy, us": sum(map(sum, times.values())),
        "calls": sum(map(len, times.values())),
        "kernels": [
            {"name": name, "calls": len(times[name]), "us": sum(times[name])}
            for name in order[:SHOWN]
        ],
    }
