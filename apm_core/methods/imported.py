"""Takes a set that was made elsewhere, so that it is measured as the others are."""

import torch
from torch import Tensor

from apm_core import distilled
from apm_core.data.prepared import PreparedData
from apm_core.distilled import DistilledSet
from apm_core.errors import DataError
from apm_core.methods.base import Job, OneShot, Shard
from apm_core.runtime import store
from apm_core.settings.methods.imported import ImportedSettings


class Imported(OneShot):
    """The decoded images of a distilled set, with its labels; nothing is distilled."""

    settings: ImportedSettings

    def make(self, job: Job) -> Shard:
        """The images of the shard, class by class.

        Raises ArtifactError for a file that is missing or damaged, DataError for a set of other
        images, classes or images per class than the run's.
        """
        found = distilled.load(self.settings.file)
        self._require_fit(found, job)
        rows = []
        for c in range(job.data.shape.classes):
            members = torch.nonzero(found.classes == c).flatten()
            rows.append(members[job.shard * job.ipc : (job.shard + 1) * job.ipc])
        index = torch.cat(rows)
        images, targets = in_working_space(found, job.data)[index], found.targets[index]
        return Shard(images, found.classes[index], targets, source=found.artifact)

    def _require_fit(self, found: DistilledSet, job: Job) -> None:
        file, shape, names = self.settings.file, job.data.shape, tuple(job.data.class_names)
        if found.shape.image != shape.image:
            raise DataError(f"{file}: {found.shape}, the data set of the run has {shape}")
        if len(found.class_names) != shape.classes:
            raise DataError(
                f"{file}: {len(found.class_names)} classes, the data set of the run has"
                f" {shape.classes}"
            )
        if found.class_names != names and set(found.class_names) == set(names):
            raise DataError(
                f"{file}: its classes are in another order, {found.class_names[0]!r} first, than"
                f" those of the run, {names[0]!r} first: import the set with its labels in that"
                " order"
            )
        wanted = job.ipc * job.shards
        counts = torch.bincount(found.classes, minlength=shape.classes)
        wrong = torch.nonzero(counts != wanted).flatten()
        if len(wrong):
            c = int(wrong[0])
            count, tiles = int(counts[c]), job.tiles**2
            remedy = f"set ipc: {count // tiles}" if count % tiles == 0 else "set tiles: 1 for it"
            of = f" ({wanted // tiles} x {tiles} tiles)" if tiles > 1 else ""
            raise DataError(
                f"{file}: {count} images of class {names[c]!r}, the run has {wanted} of each{of}:"
                f" {remedy}, or choose another set"
            )


def in_working_space(found: DistilledSet, data: PreparedData) -> Tensor:
    """The images (N, C, H, W) of a set as the networks of a run see them: whitened as its data are,
    and left as they are where the set has the same whitening.
    """
    own = found.whitening_file.content if found.whitening_file else store.content_hash({})
    if own == store.content_hash(data.whitening.arrays()):
        return found.images
    return data.whitening.apply(found.whitening.invert(found.images))
