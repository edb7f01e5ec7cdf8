"""What the distilled sets are measured with."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from apm_core.settings.section import Above, AtLeast, Count, Section, setting
from apm_core.settings.training import AUGMENT, Architecture, Augmentation

Unique = Field(json_schema_extra={"uniqueItems": True})
Named = Field(json_schema_extra={"propertyNames": {"enum": list(get_args(Architecture))}})
Architectures = Annotated[list[Architecture], Unique]
Rates = Annotated[list[Above], Unique]
Protocol = Literal["own", "hard", "plain", "kd"]
OfLogits = Literal["l1", "soft_ce"]  # losses that compare logits with logits
RATES = "factors of the set's learning rate: the best on training images is used; []: the set's"


class Override(Section):
    """Settings of one architecture: numbers in place of the section's, and how it is trained in
    place of the sets' recipes; null: those. Continual learning takes the width alone.
    """

    epochs: Count | None = setting(None, "E, as in recipe.epochs")
    networks: Count | None = setting(None, "trained from scratch")
    width: Count | None = setting(None, "channels of its first stage")
    lr: Above | None = setting(None, "learning rate; null: the set's")
    rates: Rates | None = setting(None, RATES)
    batch: Count | None = setting(None, "images per step; null: the set's")
    optimizer: Literal["sgd", "adam", "adamw"] | None = setting(None, "null: the set's")
    schedule: Literal["step", "cosine"] | None = setting(None, "null: the set's")
    loss: OfLogits | None = setting(None, "in place of l1 or soft_ce alone; null: the set's")


class Ceiling(Section):
    """Networks trained on the full data with the teachers' recipe."""

    architectures: Architectures = setting(["convnet"], "architectures of the ceiling")
    networks: Count = setting(5, "per architecture")
    epochs: Count = setting(100, "passes over the training split")


class OnlineTraining(Section):
    """How networks are trained on images that a teacher labels batch by batch, as RDED (Sun et al.,
    CVPR 2024) and its successors measure.
    """

    epochs: Count = setting(300, "passes over the images")
    lr: Above = setting(0.001, "learning rate of AdamW; falls to half of it, along a cosine")
    batch: Count | None = setting(
        None, "images per step; null: 10, 50 or 100 for 1, up to 10 or more stored images per class"
    )
    temperature: Above = setting(20.0, "that logits are divided by before they are compared")
    weight_decay: AtLeast = setting(0.01, "beside the gradient, on matrices and kernels alone")
    augment: Augmentation = setting("flip", f"before CutMix: {AUGMENT}")

    def batch_for(self, ipc: int) -> int:
        """Images per step for a set of `ipc` stored images per class."""
        return self.batch or (10 if ipc == 1 else 50 if ipc <= 10 else 100)


class OnlineLabels(OnlineTraining):
    """Networks trained on each distilled set under labels of the first of the teachers, the same
    for all sets, which it gives each batch when it is augmented.
    """

    architectures: Architectures = setting([], "also evaluated so")


class Evaluation(Section):
    """Networks trained from scratch on each distilled set."""

    networks: Count = setting(5, "trained from scratch per architecture")
    epochs: Count = setting(1000, "E, as in recipe.epochs")
    architectures: Annotated[Architectures, Field(min_length=1)] = setting(
        ["convnet", "vgg11", "resnet18", "vit"], "architectures to evaluate"
    )
    overrides: Annotated[dict[Architecture, Override | None], Named] = setting(
        {},
        "other settings for some architectures (epochs, networks, width, lr, rates, batch,"
        " optimizer, schedule, loss): {vit: {epochs: 300, optimizer: adam, lr: 0.0005}}; null for"
        " one: none, in place of those of a config below",
    )
    rates: Rates = setting([], RATES)
    hard_labels: Architectures = setting(
        ["convnet"], "also evaluated with class labels and cross-entropy"
    )
    plain: Architectures = setting(["convnet"], "also evaluated without augmentation")
    kd: OnlineLabels = OnlineLabels()
    ceiling: Ceiling = Ceiling()

    @property
    def overridden(self) -> dict[Architecture, Override]:
        """The overrides of the architectures that have one."""
        return {name: own for name, own in self.overrides.items() if own}

    @property
    def trained_by_recipe(self) -> set[Architecture]:
        """The architectures that are trained by the recipes of the sets."""
        return {*self.architectures, *self.hard_labels, *self.plain}

    @property
    def trained(self) -> set[Architecture]:
        """All architectures that are trained, on the sets or on the full data."""
        return self.trained_by_recipe | {*self.kd.architectures, *self.ceiling.architectures}


class Continual(Section):
    """Networks trained on each distilled set as the memory of classes that come in steps (GDumb:
    Prabhu et al., ECCV 2020), for the target results/NAME_ipcN.continual.json.
    """

    steps: Count = setting(5, "in which the classes come, at most as many as there are classes")
    orders: Count = setting(
        5, "of the classes, drawn by the seed; each with a network from scratch after every step"
    )
    network: Architecture = setting("convnet", "architecture")
    epochs: Count = setting(1000, "E, as in recipe.epochs, after every step")
    rates: Rates = setting([], RATES)


class RankingTraining(Section):
    """How NAS-Bench-201 networks are trained: SGD with Nesterov, a cosine to 0."""

    epochs: Count = setting(200, "passes over the images")
    lr: Above = setting(0.05, "learning rate at the start of the cosine")
    batch: Annotated[int, Field(ge=2)] = setting(64, "images per step (batch norm needs two)")
    weight_decay: AtLeast = setting(5e-4, "on all parameters")


class Reference(Section):
    """The ranking that a set's ranking is compared with."""

    source: Literal["train", "table"] = setting(
        "train", "train the same networks on the full data (hours), or take a table (seconds)"
    )
    table: str | None = setting(None, "CSV or CSV.gz file with a column arch_str")
    column: str | None = setting(
        None, "column of the accuracies, for example CIFAR10TestAccuracy200Epochs"
    )


class RankedNetworks(Section):
    """Which networks are ranked."""

    networks: Annotated[int, Field(ge=0, le=15000)] = setting(
        100, "architectures, drawn by the seed: 0 for no ranking, else at least 3"
    )
    cells: Count = setting(5, "N: cells per stage")
    stem: Count = setting(16, "C: channels of the first stage")
    norm: Literal["batch", "instance"] = setting(
        "batch", "batch, or instance (the norm that the images were distilled with)"
    )


class Nas(RankedNetworks):
    """The ranking of NAS-Bench-201 networks by a distilled set."""

    seeds: Count = setting(1, "trainings of each network on the distilled set")
    short: bool = setting(
        True,
        "also ranked by trainings on the full data that see as many images as those on the set",
    )
    proxy: RankingTraining = RankingTraining()
    train: RankingTraining = RankingTraining(epochs=50, lr=0.1, batch=256)
    reference: Reference = Reference()
