"""Every setting of a run: type, default, bounds and meaning, each stated here alone.

Light to import: the workflow plans with these classes, without loading torch.
"""
