"""One file of `torch.save` with `[images, targets]`: the form of IDC, DANCE, NCFM and TGDD."""

from pathlib import Path

from apm_core import sidecar
from apm_core.distilled import DistilledSet
from apm_core.runtime import tensor_file

SUFFIX = ".pt"


def export(distilled: DistilledSet, path: Path) -> None:
    """Write images (N, C, H, W) float32, as networks see them, and targets, logits (N, classes) or
    class indices (N,).
    """
    tensor_file.write(path, [distilled.images.contiguous(), distilled.targets])
    sidecar.write(distilled, path, "pt", pixels=False)
