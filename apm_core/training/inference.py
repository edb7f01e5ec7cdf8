"""What a trained network says: its predictions, its accuracy, its cost."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from apm_core.data.examples import Examples, Images
from apm_core.nets.flat import FlatNet
from apm_core.runtime.device import Compute
from apm_core.settings.names import module_of, names_in
from apm_core.training.metrics.accuracy import measure as percent_correct

METRICS = "training.metrics"


def forward_flops(net: FlatNet, image: Sequence[int], compute: Compute) -> float:
    """Floating-point operations of one image of shape `image` (C, H, W) through `net`."""
    from torch.utils.flop_counter import FlopCounterMode  # imports triton, which takes a while

    modes = {module: module.training for module in net.module.modules()}
    net.module.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.module(torch.zeros(1, *image, device=compute.device, dtype=net.vector.dtype))
    for module, training in modes.items():  # dropout may be off in a network that is trained
        module.training = training
    return float(counter.get_total_flops())


@torch.no_grad()
def logits(net: FlatNet, images: Images, compute: Compute, *, batch: int = 1000) -> Tensor:
    """Predictions (N, C) float32 of `net` in evaluation mode, on the device."""
    return _outputs(net, net.module, images, compute, batch)


@torch.no_grad()
def embeddings(net: FlatNet, images: Images, compute: Compute, *, batch: int = 1000) -> Tensor:
    """What the head of `net` reads, (N, D) float32, on the device; where the network has no
    `embed`, its predictions.
    """
    return _outputs(net, getattr(net.module, "embed", net.module), images, compute, batch)


def labeller(net: FlatNet, compute: Compute) -> Callable[[Tensor], Tensor]:
    """A function from images (N, C, H, W) on the device to the logits (N, classes) of `net` in
    evaluation mode, for steps of a `Trainer`; `net` is not to be changed while it is in use.
    """
    net.module.eval()

    def label(images: Tensor) -> Tensor:
        with torch.no_grad(), compute.autocast():
            logits = net.module(images)
        return logits.float() if compute.precision == "bf16" else logits

    return label


def _outputs(
    net: FlatNet,
    function: Callable[[Tensor], Tensor],
    images: Images,
    compute: Compute,
    batch: int,
) -> Tensor:
    net.module.eval()
    parts = []
    for at in range(0, len(images), batch):
        index = torch.arange(at, min(at + batch, len(images)), device=compute.device)
        with compute.autocast():
            parts.append(function(images[index]).float())
    return torch.cat(parts)


def accuracy(net: FlatNet, examples: Examples, compute: Compute) -> float:
    """Share of `examples` (targets: class indices) classified correctly, in percent."""
    return percent_correct(logits(net, examples.images, compute), examples.targets)


def measures(net: FlatNet, examples: Examples, compute: Compute) -> dict[str, float]:
    """Every metric of `apm_core.training.metrics` on `examples` (targets: class indices), by name,
    from one inference.
    """
    found = logits(net, examples.images, compute)
    return {
        name: module_of(METRICS, name).measure(found, examples.targets)
        for name in names_in(METRICS)
    }
