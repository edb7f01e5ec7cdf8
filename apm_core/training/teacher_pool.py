"""A pool of networks trained on the full data, as distillation and labelling use it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from apm_core.data.examples import Images
from apm_core.data.prepared import PreparedData
from apm_core.errors import ArtifactError, ConfigError
from apm_core.nets.flat import FlatNet
from apm_core.nets.spec import Spec
from apm_core.runtime import store
from apm_core.runtime.device import Compute
from apm_core.training.inference import logits

KIND = "teachers"


def initial(spec: Spec, seed: int, member: int) -> Tensor:
    """The parameters (P,), on the CPU, that teacher `member` of a pool of `seed` begins with."""
    return spec.fresh(seed, "teacher", member, "weights")


@dataclass(frozen=True)
class TeacherPool:
    """Trained networks of one architecture; one network in memory serves them all."""

    spec: Spec
    vectors: Tensor  # (n, P) float32 in host memory
    net: FlatNet
    artifacts: tuple[store.Artifact, ...] = ()

    @classmethod
    def open(
        cls, paths: Sequence[str | Path], data: PreparedData, compute: Compute
    ) -> "TeacherPool":
        """Read the groups of a pool, in order.

        Raises ArtifactError when a file is damaged, was made for other data, or the groups differ
        in architecture.
        """
        artifacts = tuple(store.read(path, KIND, lazy=True) for path in paths)
        specs = [Spec.from_dict(dict(artifact.info["network"])) for artifact in artifacts]
        for artifact, spec in zip(artifacts, specs, strict=True):
            artifact.require_input("data", data.artifact)
            if spec != specs[0]:
                raise ArtifactError(
                    f"{artifact.path}: holds {spec}, {artifacts[0].path} holds {specs[0]}:"
                    " delete the older of the two and run again"
                )
        vectors = torch.from_numpy(np.concatenate([a.arrays["parameters"] for a in artifacts]))
        net = specs[0].network(compute.device)
        net.module.eval().requires_grad_(False)
        return cls(specs[0], vectors, net, artifacts)

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def trajectories(self) -> list[Tensor]:
        """Per group, the parameters (member, epoch, P) from initialisation to the last epoch, in
        the type in which they are stored.

        Raises ConfigError for a pool without them.
        """
        return list(self._trajectories())

    def _trajectories(self) -> Iterator[Tensor]:
        """The same, each group read when it is its turn."""
        for artifact in self.artifacts:
            if "snapshots" not in artifact.arrays:
                raise ConfigError(
                    f"{artifact.path}: holds no trajectories: distil from the experts, not from"
                    " the teachers"
                )
        for artifact in self.artifacts:
            yield torch.from_numpy(artifact.arrays["snapshots"])

    def require_epochs(self, epochs: Sequence[int], key: str) -> None:
        """Raise ConfigError, naming `key`, unless the pool has snapshots after `epochs`."""
        if any("snapshots" not in artifact.arrays for artifact in self.artifacts):
            raise ConfigError(f"{key}: its teachers need snapshots: true in their section")
        last = min(artifact.shapes["snapshots"][1] for artifact in self.artifacts) - 1
        if not 0 <= min(epochs) <= max(epochs) <= last or list(epochs) != sorted(epochs):
            raise ConfigError(
                f"{key}: {list(epochs)} are not epochs in ascending order from 0 to {last}, the"
                " last of the teachers"
            )

    def load(self, index: int, epoch: int | None = None) -> FlatNet:
        """The network with the parameters of teacher `index`, as they were after `epoch` epochs of
        its training or (None) at its end; valid until the next call.
        """
        self.net.load(self.after(epoch, index + 1)[index])
        return self.net

    def after(self, epoch: int | None, first: int | None = None) -> Sequence[Tensor]:
        """The parameters (P,) of every teacher, or of the `first` ones, after `epoch` epochs or
        (None) at the end. Files that hold only snapshots of others are not read.
        """
        if epoch is None:
            return self.vectors[:first]
        members = (member[epoch] for group in self._trajectories() for member in group)
        return list(islice(members, first))

    def before(self, index: int) -> Tensor:
        """The parameters (P,) of teacher `index` before its training, drawn again; on the CPU."""
        members = [(group, member) for group in self.artifacts for member in group.info["members"]]
        group, member = members[index]
        return initial(self.spec, group.settings["seed"], member)

    def logits(
        self,
        index: int | None,
        images: Images,
        compute: Compute,
        *,
        epoch: int | None = None,
        batch: int = 1000,
    ) -> Tensor:
        """Predictions (N, C) of teacher `index` on clean images, or of the pool's mean (None)."""
        members = range(len(self)) if index is None else [index]
        total = sum(logits(self.load(m, epoch), images, compute, batch=batch) for m in members)
        return total / len(members)
