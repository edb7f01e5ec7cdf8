"""Every random stream, derived from the run seed and the place where it is used; nothing global.

A stream is named by a path such as `(seed, "distill", shard, round, "subset")`. Equal paths give
equal streams whatever ran before, so work can be resumed, reordered or split over jobs without a
change of result.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

Key = int | str


def derive(*path: Key) -> int:
    """A 63-bit seed that depends on every element of `path` and on their types."""
    digest = hashlib.sha256(repr(path).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*path: Key) -> torch.Generator:
    """A CPU generator for `path`. Draws happen on the CPU, so they do not depend on the device."""
    return torch.Generator().manual_seed(derive(*path))


@contextmanager
def seeded(*path: Key) -> Iterator[None]:
    """Run torch code that only knows the global generator (initialisation, dropout) on its own
    stream.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(derive(*path))
        yield
