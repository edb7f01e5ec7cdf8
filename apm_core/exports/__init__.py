"""Exports of distilled sets to other formats: one module for each, named after the format.

A module defines `export(distilled: DistilledSet, folder: Path) -> None`, which writes into a folder
that is new or empty.
"""
