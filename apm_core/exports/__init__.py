"""Exports of distilled sets to other formats: one module for each, named after the format.

A module states as `SUFFIX` the suffix of its one file, or None where it writes a folder, and
defines `export(distilled: DistilledSet, path: Path) -> None`, which writes to a new file, or to a
folder that is new or empty. `distilled` is in the order of its classes.
"""
