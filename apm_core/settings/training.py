"""How networks are trained: on the distilled images, and on the full data."""

from typing import Annotated, Literal

from pydantic import Field

from apm_core.settings.names import names_in
from apm_core.settings.section import (
    Above,
    AtLeast,
    BelowOne,
    Count,
    Index,
    Section,
    changes_of,
    setting,
)

Architecture = Literal[names_in("nets.architectures")]
Loss = Literal[names_in("training.losses")]
GROUPS = ("color", "crop", "cutout", "flip", "scale", "rotate")  # of augmentations
DSA = "color_crop_cutout_flip_scale_rotate"
ONE_GROUP = f"({'|'.join(GROUPS)})"
Augmentation = Annotated[str, Field(pattern=f"^(none|{ONE_GROUP}(_{ONE_GROUP})*)$")]
AUGMENT = f"DSA groups ({', '.join(GROUPS)}) joined by _, or none"


class Network(Section):
    """One architecture."""

    network: Architecture = setting("convnet", "architecture")
    width: Count | None = setting(None, "channels of its first stage; null: its own default")
    depth: Count | None = setting(None, "blocks of a ConvNet; null: by resolution")


class RecipeSettings(Section):
    """How a network is trained on the distilled images: students, and whoever uses the set."""

    epochs: Count = setting(250, "E: epoch indices 0 to E are run")
    lr: Above = setting(0.02, "learning rate")
    batch: Count = setting(256, "images per step")
    momentum: BelowOne = setting(0.9, "of SGD; Adam's first beta")
    weight_decay: AtLeast = setting(5e-4, "on all parameters")
    loss: Loss = setting("l1", "between logits and labels")
    augment: Augmentation = setting(DSA, AUGMENT)
    optimizer: Literal["sgd", "adam"] = setting("sgd", "sgd or adam")
    schedule: Literal["step", "cosine"] = setting(
        "step", "step: lr/10 from about half of the epochs on; cosine: down to floor"
    )
    warmup: Index = setting(
        0, "passes in which a cosine's rate first rises from 0, at most half of them"
    )
    floor: Annotated[float, Field(ge=0, le=1)] = setting(0.0, "share of lr at a cosine's end")
    drop_momentum: bool = setting(False, "forget the momentum where the rate drops")


def misfit(loss: str, *, classes: bool) -> tuple[str, str] | None:
    """None where `loss` goes with the labels: cross-entropy with class indices, every other with
    logits. Else what the labels are, and which losses go with them.
    """
    if (loss == "ce") == classes:
        return None
    soft = ", ".join(name for name in names_in("training.losses") if name != "ce")
    return ("class indices", "ce") if classes else ("logits", f"one of {soft}")


RecipeChanges = changes_of(
    RecipeSettings,
    "RecipeChanges",
    "Where a method's recipe differs from `recipe`; null: as there.",
)


class PoolTraining(Section):
    """How networks are trained on the full data."""

    per_job: Count = setting(10, "networks trained by one job")
    epochs: Count = setting(100, "passes over the training split")
    lr: Above = setting(0.05, "learning rate of SGD")
    batch: Count = setting(256, "images per step")
    momentum: BelowOne = setting(0.9, "of SGD")
    weight_decay: AtLeast = setting(5e-4, "on all parameters")
    drop_at: Annotated[float, Field(gt=0, le=1)] = setting(
        0.5, "share of the epochs after which lr is divided by 10; 1: never"
    )
    augment: Augmentation = setting(DSA, AUGMENT)
    snapshots: bool = setting(False, "keep the parameters after every epoch")
    snapshot_type: Literal["float32", "float16"] = setting("float32", "of the snapshots on disk")
    rho: AtLeast = setting(0.0, "radius in which a flat minimum is looked for (GSAM); 0: plain SGD")
    alpha: AtLeast = setting(0.0, "share of the gradient across that of the radius to take away")


class Curriculum(Section):
    """Which images an epoch, counted from 0, trains on: by the gradient norms of young networks."""

    easiest: Annotated[float, Field(gt=0, le=1)] = setting(
        0.75, "share of each class's images in epoch 0, the easiest; it grows linearly"
    )
    all_from: Count = setting(20, "epoch from which on all images are trained on")
    drop_after: Index = setting(40, "epoch after which the share `drop`, the easiest, is left out")
    drop: BelowOne = setting(0.1, "share of each class's images")
    drop_more_after: Index = setting(60, "epoch after which the share is `drop_more`")
    drop_more: BelowOne = setting(0.2, "share of each class's images")
    networks: Count = setting(10, "networks that judge the images, trained by each job")
    epochs: Count = setting(10, "passes over the training split that each of them has done")


class OrderedTraining(PoolTraining):
    """How networks are trained on images in the order of their difficulty."""

    curriculum: Curriculum = Curriculum()


class Pool(PoolTraining):
    """A pool of networks trained on the full data, of the architecture of `teachers`."""

    n: Count = setting(100, "networks in the pool, a multiple of per_job")

    @property
    def groups(self) -> int:
        """The number of jobs that train it."""
        return self.n // self.per_job


class OrderedPool(OrderedTraining, Pool):
    """A pool of networks trained on images in the order of their difficulty."""


class Teachers(Network, Pool):
    """Networks trained on the full data, and the architecture to distil with."""


POOLS: dict[str, Pool] = {  # by name: the pools that methods distil from, with their defaults
    "teachers": Teachers(width=128),
    "aligned_teachers": Pool(n=20, epochs=4, drop_at=0.7, snapshots=True),
    "experts": Pool(
        epochs=50, lr=0.01, momentum=0.0, weight_decay=0.0, drop_at=1.0, snapshots=True
    ),
    "flat_experts": Pool(
        lr=0.01, momentum=0.0, weight_decay=0.0, drop_at=1.0, snapshots=True, rho=0.01, alpha=0.3
    ),
    "ordered_experts": OrderedPool(
        lr=0.01, momentum=0.0, weight_decay=0.0, drop_at=1.0, snapshots=True, rho=0.01, alpha=0.3
    ),
}
PoolName = Literal[tuple(POOLS)]
