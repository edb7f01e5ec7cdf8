"""Prioritized alignment in dataset distillation (PAD).

Li et al., "Prioritize Alignment in Dataset Distillation", arXiv:2408.03360, 2024. DATM with two
changes. Its experts see images in the order of their difficulty: first the easiest, then all, in
the end all but the easiest (`training/difficulty.py`). And the distance, both its numerator and
its normalisation, leaves out the first share of the parameters, those of the shallow layers.

Deviations from the published code: those of `datm.py` and of `training/difficulty.py`. The share is
that of `PAD_depth.py`; its other script, which leaves out the parameters that are nearest to the
expert's, has no counterpart here. Published shares are 0.5, or 0 for CIFAR-10 with 1 and CIFAR-100
with 50 images per class.
"""

from apm_core.methods.base import Job
from apm_core.methods.matching.datm import DATM


class PAD(DATM):
    """DATM along experts of ordered data, in the deep layers."""

    def attach(self, job: Job) -> None:
        """Hold the experts, and count the parameters of the shallow layers."""
        super().attach(job)
        self.skip = int(self.settings.skip * job.teachers.net.size)
