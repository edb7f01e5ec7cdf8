"""A data set for the Hugging Face Hub: a parquet file and a dataset card.

The columns are what the `datasets` library writes for its features Image, ClassLabel and Value or
Sequence, so `datasets.load_dataset(folder)` reads them, with or without the Hub.
"""

import io
import json
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from apm_core import sidecar
from apm_core.distilled import DistilledSet
from apm_core.errors import ConfigError
from apm_core.runtime import store

SUFFIX = None
DATA = "data/train-00000-of-00001.parquet"
CARD = """---
{header}---

# {title}

{count} images, {ipc} per class, distilled by `{method}` with apm. A network is trained on `image`,
after the normalisation that [{sidecar}]({sidecar}) states, with `label` as its target and the
recipe that stands there.

- `image`: {side} x {side}, decoded pixels in true colours, 8 bits
- `class`: the class that the image stands for
- `label`: {label}
"""


def export(distilled: DistilledSet, path: Path) -> None:
    """Write `data/train-00000-of-00001.parquet`, with the columns `image` (a PNG), `class` and
    `label`, and the card `README.md`.

    Raises ConfigError when pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ConfigError("hf: pyarrow is not installed: pip install pyarrow") from None
    soft = distilled.targets.is_floating_point()
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {
        "image": pa.array([{"bytes": one, "path": None} for one in _pngs(distilled)], struct),
        "class": pa.array(distilled.classes.tolist(), pa.int64()),
        "label": pa.array(
            distilled.targets.tolist(), pa.list_(pa.float32()) if soft else pa.int64()
        ),
    }
    features = json.dumps({"info": {"features": _features(distilled)}})
    table = pa.table(columns).replace_schema_metadata({"huggingface": features})
    with store.atomic_path(path / DATA) as temporary:
        pq.write_table(table, temporary)
    with store.atomic_path(path / "README.md") as temporary:
        temporary.write_text(_card(distilled), encoding="utf-8")
    sidecar.write(distilled, path, "hf", pixels=True)


def _pngs(distilled: DistilledSet) -> list[bytes]:
    """Each image as the bytes of a PNG file, grey sets in grey."""
    files, images = [], distilled.images_rgb()
    for pixels in images[..., 0] if distilled.shape.channels == 1 else images:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="PNG")
        files.append(file.getvalue())
    return files


def _features(distilled: DistilledSet) -> dict[str, Any]:
    """The features as the schema of the parquet file states them."""
    label: dict[str, Any] = {"dtype": "int64", "_type": "Value"}
    if distilled.targets.is_floating_point():
        label = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}
    names = list(distilled.class_names)
    classes = {"names": names, "_type": "ClassLabel"}
    return {"image": {"_type": "Image"}, "class": classes, "label": label}


def _card(distilled: DistilledSet) -> str:
    soft, info = distilled.targets.is_floating_point(), distilled.artifact.info
    names = {str(c): name for c, name in enumerate(distilled.class_names)}
    label = {"sequence": "float32"} if soft else {"dtype": "int64"}
    count = len(distilled)
    header = {
        "task_categories": ["image-classification"],
        "tags": ["dataset-distillation"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": DATA}]}],
        "dataset_info": {
            "features": [
                {"name": "image", "dtype": "image"},
                {"name": "class", "dtype": {"class_label": {"names": names}}},
                {"name": "label", **label},
            ],
            "splits": [{"name": "train", "num_examples": count}],
        },
    }
    loss = distilled.recipe.loss
    return CARD.format(
        header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True),
        title=Path(distilled.artifact.path).name.removesuffix(".zarr.zip"),
        count=count,
        ipc=distilled.ipc * distilled.tiles**2,
        method=info.get("method", "an unknown method"),
        side=distilled.shape.resolution,
        label=f"logits for the loss `{loss}`, one of each class"
        if soft
        else "the same, as the target",
        sidecar=sidecar.NAME,
    )
