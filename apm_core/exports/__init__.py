"""Distilled sets in the forms of other tools: one module for each, named like the form.

A module defines `export(distilled: DistilledSet, folder: Path) -> None`, which writes into a folder
that is new or empty.
"""
