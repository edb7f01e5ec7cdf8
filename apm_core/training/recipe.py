"""How a network is trained: everything but the network and the examples."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from apm_core.errors import ConfigError
from apm_core.settings.evaluation import OnlineTraining
from apm_core.settings.names import names_in
from apm_core.settings.training import PoolTraining, RecipeSettings, misfit
from apm_core.training import augment

SCHEDULES = ("step", "cosine", "half_cosine")
OPTIMIZERS = ("sgd", "adam", "adamw")
DEFAULTS = RecipeSettings()


@dataclass(frozen=True)
class Recipe:
    """How one network is trained: everything but the network and the examples."""

    passes: int  # over the examples, literally
    lr: float
    batch: int = DEFAULTS.batch  # examples; a short last batch is used, not dropped
    momentum: float = DEFAULTS.momentum
    weight_decay: float = DEFAULTS.weight_decay  # on all parameters, norms and biases included
    nesterov: bool = False
    # "step": a tenth of lr from pass `drop` on; "cosine": towards `floor`, which the pass after the
    # last one would have; "half_cosine": the first half of one, to about lr / 2
    schedule: str = "step"
    drop: int | None = None  # first pass with the lower rate; None: never
    drop_momentum: bool = (
        False  # forget the momentum at the drop, as the trajectory-matching evaluators do
    )
    loss: str = "ce"
    augment: str = DEFAULTS.augment
    rho: float = 0.0  # radius in which a flat minimum is looked for (GSAM); 0: plain SGD
    alpha: float = 0.0  # share of the gradient across that of the radius that is taken away
    # "sgd"; "adam": momentum is its first beta, weight decay joins the gradient; "adamw": the decay
    # stands beside it, on matrices and kernels alone
    optimizer: str = "sgd"
    # with schedule cosine:
    warmup: int = 0  # passes in which the rate rises from 0, at most half of them
    floor: float = 0.0  # share of lr that the rate falls to
    cutmix: bool = False  # of every batch, after the augmentation
    temperature: float = 1.0  # of the loss: logits, and labels that are logits, are divided by it

    def __post_init__(self) -> None:
        losses = names_in("training.losses")
        if self.loss not in losses:
            raise ConfigError(f"loss: there is no loss {self.loss!r}; known: {', '.join(losses)}")
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"schedule: {self.schedule!r} is none of {', '.join(SCHEDULES)}")
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"optimizer: {self.optimizer!r} is none of {', '.join(OPTIMIZERS)}")
        if self.optimizer != "sgd" and self.nesterov:
            raise ConfigError(
                f"nesterov: true goes with optimizer sgd: set it to false for {self.optimizer}"
            )
        augment.groups(self.augment)

    @classmethod
    def of(cls, settings: RecipeSettings) -> "Recipe":
        """The recipe that the settings state; its passes and drop follow from their `epochs` E."""
        fields = settings.model_dump(exclude={"epochs"})
        return cls(passes=1, **fields).with_epochs(settings.epochs)

    def rate(self, index: int) -> float:
        """The learning rate of pass `index` (from 0)."""
        if self.schedule == "half_cosine":
            return self.lr * 0.5 * (1 + math.cos(0.5 * math.pi * index / self.passes))
        if self.schedule == "cosine":
            rising = min(self.warmup, self.passes // 2)
            if index < rising:
                return self.lr * (index + 1) / rising
            share = (index - rising) / (self.passes - rising)
            falling = 0.5 * (1 + math.cos(math.pi * share))
            return self.lr * (self.floor + (1 - self.floor) * falling)
        return self.lr * (0.1 if self.drop is not None and index >= self.drop else 1.0)

    def with_epochs(self, epochs: int) -> "Recipe":
        """The field's schedule for E epochs on a distilled set: epoch indices 0..E, lr/10 from
        about half-way on.

        The drop is at index E//2+1 (APM), or one later where the momentum is forgotten (DC, DSA, DM
        and the trajectory-matching family, which rebuild the optimizer after that epoch).
        """
        drop = epochs // 2 + (2 if self.drop_momentum else 1)
        return replace(self, passes=epochs + 1, drop=drop)

    def with_hard_labels(self) -> "Recipe":
        """The same recipe for class indices."""
        return replace(self, loss="ce")

    def require_targets(self, targets: Tensor, place: str) -> None:
        """Raise ConfigError, naming `place`, unless the loss goes with `targets`: cross-entropy
        with class indices (N,), every other with logits (N, C).
        """
        found = misfit(self.loss, classes=targets.ndim == 1)
        if found:
            kind, wanted = found
            raise ConfigError(
                f"{place}: the loss {self.loss} does not go with labels that are {kind}: set the"
                f" loss of its recipe to {wanted}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; `Recipe(**d)` is the inverse."""
        return asdict(self)


def teacher_recipe(training: PoolTraining) -> Recipe:
    """Recipe T1 of the APM code: SGD, DSA, one step decay; with `rho`, flat minima are looked for.
    `epochs` counts passes literally.
    """
    own = {"lr", "batch", "momentum", "weight_decay", "augment", "rho", "alpha"}
    drop = max(1, round(training.drop_at * training.epochs))
    return Recipe(passes=training.epochs, drop=drop, **training.model_dump(include=own))


def online_recipe(training: OnlineTraining, ipc: int) -> Recipe:
    """The recipe of RDED's code for sets of `ipc` stored images per class, under a teacher's online
    labels: AdamW along half a cosine, and CutMix of every batch.

    Its random crops keep at least the share of a tile, and its shuffling of patches makes mosaics;
    images here are decoded whole, and both leave them as they are. Batch and rate are the same for
    all data sets and networks, where it doubles the batch for 100 or 1,000 classes and has a rate
    of 5e-4 for VGG11 and of 1e-4 for AlexNet and ViT.
    """
    own = {"lr", "weight_decay", "temperature", "augment"}
    return Recipe(
        passes=training.epochs,
        batch=training.batch_for(ipc),
        schedule="half_cosine",
        loss="kl",
        optimizer="adamw",
        cutmix=True,
        **training.model_dump(include=own),
    )
