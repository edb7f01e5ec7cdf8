"""Images that are stored as tiles: a mover for a method that knows nothing of it."""

from dataclasses import dataclass

from torch import Tensor

from apm_core.data.tiles import Tiles
from apm_core.methods.movers import Mover, Rows, State, whole


@dataclass(frozen=True)
class TiledImages(Mover):
    """Moves the stored images so that the decoded ones follow their gradient as nearly as they can.

    A state has both: the method's decoded ones under `NAME`, stored ones under `NAME_stored`.
    """

    inner: Mover  # the method's own, which moves the stored images
    tiles: Tiles

    @property
    def at_home(self) -> bool:
        """As for the method's own mover."""
        return self.inner.at_home

    def rate_at(self, index: int) -> float:
        """As of the method's own mover."""
        return self.inner.rate_at(index)

    def start(self, name: str, tensor: Tensor) -> State:
        """Both forms, and the inner mover's state; `tensor` becomes what the tiles can show."""
        stored = self.tiles.encode(tensor)
        own = self.inner.start(name, stored)
        return {name: self.tiles.decode(stored), f"{name}_stored": stored, **own}

    def move(self, state: State, name: str, gradient: Tensor | Rows, index: int) -> State:
        """Move the stored images, and decode them."""
        key, decoded = f"{name}_stored", state[name]
        pulled = self.tiles.step_towards(whole(gradient.to(decoded.device), decoded))
        moved = self.inner.move({**state, name: state[key]}, name, pulled, index)
        return {**moved, key: moved[name], name: self.tiles.decode(moved[name])}

    def product(self, state: State, name: str) -> Tensor:
        """The decoded images of what the inner mover makes of the stored ones."""
        stored = self.inner.product({**state, name: state[f"{name}_stored"]}, name)
        return self.tiles.decode(stored)
