"""How much a method computes, in passes of images through its network, for estimates beforehand."""

from dataclasses import dataclass

# what one image costs, in forward passes
FORWARD = 1.0
TO_IMAGES = 2.0  # forward, and backward to the image with the parameters held still
TRAINED = 3.0  # forward, and backward to the parameters
TWICE = 9.0  # the gradient in the parameters, and its derivative


@dataclass(frozen=True)
class Extent:
    """What a shard is made from."""

    images: int  # of the shard, tiles counted singly
    classes: int
    train: int  # images of the training split
    rounds: int  # R + 1; 0 for methods without rounds


@dataclass(frozen=True)
class Passes:
    """Work of a round, or of a whole shard where there are no rounds."""

    images: float = 0.0  # forward passes of an image, backward ones counted as above
    steps: float = 0.0  # batches that pass through a network

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(self.images + other.images, self.steps + other.steps)

    def __rmul__(self, times: float) -> "Passes":
        return Passes(times * self.images, times * self.steps)
