"""All the short benchmarks, one after another.

    python -m benchmarks

Stopped, the same command on the same day goes on with those that have no result file yet; --again
measures them all anew.
"""

from benchmarks import measure, memory, round, scaling, step

parser = measure.options(__doc__)
parser.add_argument("--again", action="store_true", help="also what was measured today already")
given = parser.parse_args()
for module in (step, round, memory, scaling):
    name = module.__name__.rpartition(".")[2]
    measure.record(name, module.report, given, again=given.again)
