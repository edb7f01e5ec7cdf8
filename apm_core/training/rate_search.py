"""The learning rate that suits a set, found on real images of the training split."""

from collections.abc import Sequence

from apm_core.data.examples import Examples
from apm_core.errors import DivergenceError
from apm_core.nets.spec import Spec
from apm_core.runtime import streams
from apm_core.runtime.resume import Part
from apm_core.training.inference import accuracy
from apm_core.training.trainer import Trainer

REAL = 4000  # images of the training split that judge


def accuracy_at(
    trainer: Trainer,
    spec: Spec,
    rate: float,
    real: Examples,
    *stream: streams.Key,
    part: Part | None = None,
) -> float | None:
    """The accuracy on `real`, in percent, of a network trained at `rate`; None: training diverged.

    `stream` names all that is random, so that under one name rates differ in nothing else.
    """
    try:
        trainer.fit(spec.fresh(*stream, "network"), *stream, lr=rate, part=part)
    except DivergenceError:
        return None
    return accuracy(trainer.net, real, trainer.compute)


def best_rate(rates: Sequence[float], accuracies: Sequence[float | None]) -> float:
    """The rate with the highest accuracy; raises DivergenceError when each diverged."""
    pairs = zip(rates, accuracies, strict=True)
    finished = [(accuracy, rate) for rate, accuracy in pairs if accuracy is not None]
    if not finished:
        shown = ", ".join(f"{rate:g}" for rate in rates)
        raise DivergenceError(f"training diverged at every rate ({shown}): lower the learning rate")
    return max(finished, key=lambda pair: pair[0])[1]
