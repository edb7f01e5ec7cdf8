"""The command `apm`: looks at files, moves sets between formats and trains on them. Runs are
Snakemake's.
"""
