"""Random real images: what every method has to beat under the same labels and the same recipe."""

from apm_core.methods.base import Job, OneShot, Shard


class RandomReal(OneShot):
    """The images that the other methods start from, left as they are."""

    def make(self, job: Job) -> Shard:
        """The real images of the shard."""
        images, classes = job.real_images()
        return Shard(images.cpu(), classes.cpu())
