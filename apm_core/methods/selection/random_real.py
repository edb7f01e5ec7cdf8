"""Random real images: what every method has to beat under the same labels and the same recipe."""

from apm_core.methods.base import Job, Method, State


class RandomReal(Method):
    """The images that the other methods start from, left as they are."""

    def init(self, job: Job) -> State:
        """The real images of the shard."""
        images, classes = job.real_images()
        return {"images": images, "classes": classes}

    def attach(self, job: Job) -> None:
        """Nothing to prepare."""
        del job

    def step(self, state: State, index: int) -> dict[str, float]:
        """Nothing to do: the loop runs no round of this method."""
        del state, index
        return {}
