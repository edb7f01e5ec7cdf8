"""What is measured on predictions: one module for each metric, whose name is that of the module.

A module defines `measure(logits, targets) -> float` for logits (N, C) and class indices (N,).
"""
