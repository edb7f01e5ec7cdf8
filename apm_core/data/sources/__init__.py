"""One module for each data source, whose name is that of the module.

A module defines `read(request: Request) -> Dataset`, which raises DataError when the data are
missing or damaged, and states as `CHANNELS` the mean and the std of each channel of [0, 1] pixels
by which the literature whitens the set, or None to have them measured.
"""
