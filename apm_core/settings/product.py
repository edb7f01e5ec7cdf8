"""The form of the distilled set that is given away."""

from typing import Literal

from apm_core.settings.section import Count, Section, changes_of, setting


class Product(Section):
    """What numbers a distilled set is stored in."""

    pixels: Literal["float32", "uint8"] = setting(
        "float32", "of the images; uint8: as a photograph's, whitened when they are read"
    )
    label_bits: Literal[16, 32] = setting(32, "of each logit")
    top: Count | None = setting(
        None, "logits stored per image, the largest; their mean stands for the rest; null: all"
    )


ProductChanges = changes_of(
    Product,
    "ProductChanges",
    "Where the form of a method's set differs from `distill.product`; null: as there.",
)
