"""`images.pt`, `labels.pt` and `lr.pt`, as MTT, DATM, PAD and EDF publish theirs and as DD-Ranking
reads them, with a config for DD-Ranking (arXiv:2505.13300) beside them.
"""

from pathlib import Path
from typing import Any

import torch
import yaml

from apm_core import sidecar
from apm_core.distilled import DistilledSet
from apm_core.runtime import store, tensor_file
from apm_core.training import augment

SUFFIX = None
DATASETS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "tiny_imagenet": "TinyImageNet"}
# the loss of DD-Ranking that is that of the labels, or the nearest
CRITERIA = {"soft_ce": "sce", "l1": "mse_gt", "half_mse": "mse_gt"}
DSA = {  # by name here: parameters of the same augmentation there
    "color": {
        "saturation": augment.SATURATION,
        "brightness": augment.BRIGHTNESS,
        "contrast": augment.CONTRAST,
    },
    "crop": {"crop": augment.CROP},
    "cutout": {"cutout": augment.CUTOUT},
    "flip": {"flip": 0.5},
    "scale": {"scale": augment.SCALE},
    "rotate": {"rotate": augment.ROTATE},
}


def export(distilled: DistilledSet, path: Path) -> None:
    """Write images (N, C, H, W) float32, as networks see them, in the order of the classes; labels,
    logits (N, classes) or class indices (N,); the learning rate, a scalar; and `ddranking.yaml`.
    """
    path.mkdir(parents=True, exist_ok=True)
    tensor_file.write(path / "images.pt", distilled.images.contiguous())
    tensor_file.write(path / "labels.pt", distilled.targets)
    tensor_file.write(path / "lr.pt", torch.tensor(distilled.recipe.lr))
    with store.atomic_path(path / "ddranking.yaml") as temporary:
        text = yaml.safe_dump(config(distilled), sort_keys=False, default_flow_style=None)
        temporary.write_text(text, encoding="utf-8")
    sidecar.write(distilled, path, "tensors", pixels=False)


def config(distilled: DistilledSet) -> dict[str, Any]:
    """The config of DD-Ranking's evaluators for this set: what the set decides, and the paths and
    networks that a person will want to change.
    """
    recipe, side = distilled.recipe, distilled.shape.resolution
    dataset = Path(distilled.artifact.path).name.partition("_ipc")[0]
    normalise = None
    if distilled.whitening.kind == "channel":
        statistics = {name: getattr(distilled.whitening, name).tolist() for name in ("mean", "std")}
        normalise = [{"name": "ToTensor"}, {"name": "Normalize", "args": statistics}]
    fields = {
        "dataset": DATASETS.get(dataset, dataset),
        "real_data_path": "./dataset/",
        "ipc": distilled.ipc * distilled.tiles**2,
        "im_size": [side, side],
        "model_name": "ConvNet-3",
        "use_zca": distilled.whitening.kind == "zca",
        "custom_train_trans": normalise,
        "custom_val_trans": normalise,
        "optimizer": recipe.optimizer,
        "lr_scheduler": recipe.schedule,
        "step_size": recipe.drop or recipe.passes,
        "weight_decay": recipe.weight_decay,
        "momentum": recipe.momentum,
        "num_eval": 5,
        "num_epochs": recipe.passes,
        "default_lr": recipe.lr,
        "syn_batch_size": recipe.batch,
        "save_path": "./ddranking.csv",
    }
    if recipe.augment != "none":
        parts = [DSA[group] for group in recipe.augment.split("_")]
        fields |= {
            "data_aug_func": "dsa",
            "aug_params": {k: v for p in parts for k, v in p.items()},
        }
    if distilled.targets.is_floating_point():
        criterion = CRITERIA.get(recipe.loss, "sce")
        fields |= {"soft_label_mode": "S", "soft_label_criterion": criterion}
    return fields
