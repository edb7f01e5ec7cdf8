"""Distilled sets that others published, as sets of ours."""
