"""All the short benchmarks, one after another: `python -m benchmarks`."""

from benchmarks import memory, round, scaling, step

for module in (step, round, memory, scaling):
    module.main()
