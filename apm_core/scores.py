"""Scores of the results: summaries over seeds, rank correlations, and those of DD-Ranking.

Accuracies are in percent (0 to 100) throughout. Nothing here needs torch.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np

from apm_core.errors import ConfigError

Values = Sequence[float] | np.ndarray  # (n,), one number per network or per run
Statistic = Callable[[np.ndarray, np.ndarray], float]


class Summary(TypedDict):
    """One score over several runs, ready for JSON."""

    mean: float
    std: float  # of the sample (n - 1)
    n: int
    runs: list[float]


def summarize(values: Values) -> Summary:
    """Mean and sample standard deviation (n - 1; 0.0 for a single run) of `values` (n,).

    Raises ConfigError when there are none or one is not finite.
    """
    runs = _finite("values", values, at_least=1)
    std = float(runs.std(ddof=1)) if len(runs) > 1 else 0.0
    return {"mean": float(runs.mean()), "std": std, "n": len(runs), "runs": runs.tolist()}


def paired_interval(a: Values, b: Values) -> tuple[float, float, float]:
    """The mean of a - b over pairs (n,), and the ends of its 95 % Student t interval.

    The differences count as independent draws from a normal distribution. Raises ConfigError for
    fewer than 2 pairs, unequal lengths or a value that is not finite.
    """
    a, b = _pair(a, b, at_least=2)
    from scipy import stats  # here, because it takes a second to load

    differences = a - b
    half = stats.t.ppf(0.975, len(a) - 1) * differences.std(ddof=1) / math.sqrt(len(a))
    mean = float(differences.mean())
    return mean, mean - float(half), mean + float(half)


def spearman(a: Values, b: Values) -> float:
    """Spearman's rank correlation of two scores (n,) of the same networks, ties at mean ranks.

    NaN when either score is the same for all networks, for there is no ranking then. Raises
    ConfigError for fewer than 3 networks, unequal lengths or a value that is not finite.
    """
    a, b = _pair(a, b, at_least=3)
    if _is_constant(a, b):
        return math.nan
    from scipy import stats

    return float(stats.spearmanr(a, b).statistic)


def kendall(a: Values, b: Values) -> float:
    """Kendall's tau-b, which corrects for ties; NaN and ConfigError as for `spearman`."""
    a, b = _pair(a, b, at_least=3)
    if _is_constant(a, b):
        return math.nan
    from scipy import stats

    return float(stats.kendalltau(a, b, variant="b").statistic)


def bootstrap_ci(
    a: Values, b: Values, statistic: Statistic, *, resamples: int = 2000, seed: int
) -> tuple[float, float]:
    """The 95 % percentile interval of `statistic(a, b)` over redrawn networks (Efron, 1979).

    Networks are drawn in pairs (a_i, b_i) with replacement. Draws for which the statistic is NaN
    are left out; (NaN, NaN) when all are. `seed` may be any non-negative integer, as of
    `streams.derive`. Raises ConfigError as `spearman` does, or when `resamples` is not positive.
    """
    a, b = _pair(a, b, at_least=3)
    if resamples < 1:
        raise ConfigError(f"resamples must be positive, got {resamples}")
    draws = np.random.default_rng(seed).integers(len(a), size=(resamples, len(a)))
    values = np.array([statistic(a[draw], b[draw]) for draw in draws])
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def top_recall(reference: Values, proxy: Values, fraction: float = 0.1) -> float:
    """The share, 0 to 1, of the ceil(fraction n) best by `reference` that `proxy` also has there.

    Networks tied at the edge of the best count by their chance to be taken, so the order of the
    networks does not matter. Raises ConfigError for no networks, unequal lengths, a value that is
    not finite, or a fraction outside (0, 1].
    """
    reference, proxy = _pair(reference, proxy, at_least=1)
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction must be above 0 and at most 1, got {fraction}")
    count = math.ceil(round(fraction * len(reference), 9))  # 0.07 * 100 is a little above 7
    shared = _chance_of_top(reference, count) @ _chance_of_top(proxy, count)
    return float(shared / count)


def pick(reference: Values, proxy: Values) -> float:
    """The `reference` score of the network that `proxy` likes best; the mean over a tie.

    Raises ConfigError for no networks, unequal lengths or a value that is not finite.
    """
    reference, proxy = _pair(reference, proxy, at_least=1)
    return float(reference[proxy == proxy.max()].mean())


def lrs(
    *, real_hard: float, syn_hard: float, syn_any: float, random_any: float, weight: float = 0.5
) -> float:
    """The label-robust score of DD-Ranking (Li et al., 2025, arXiv:2505.13300), 0 to 1.

    Hard label recovery, HLR = real_hard - syn_hard, is what the distilled set lacks against the
    full training set with class labels (small is good). Improvement over random,
    IOR = syn_any - random_any, is its gain over random real images under the method's own labels
    and recipe. alpha = weight IOR - (1 - weight) HLR is then mapped from [-1, 1] to [0, 1] by
    (e^alpha - 1/e) / (e - 1/e). Arguments are accuracies in percent; alpha is made of fractions, as
    the documented range needs (the published code takes its gaps in percent). Their leaderboard
    shows the score times 100. Raises ConfigError for an accuracy outside 0..100 or a weight
    outside 0..1.
    """
    recovery = _fraction("real_hard", real_hard) - _fraction("syn_hard", syn_hard)
    improvement = _fraction("syn_any", syn_any) - _fraction("random_any", random_any)
    return _robust_score(improvement, -recovery, weight)


def ars(
    *,
    syn_aug: float,
    random_aug: float,
    syn_plain: float,
    random_plain: float,
    weight: float = 0.5,
) -> float:
    """The augmentation-robust score of DD-Ranking, 0 to 1.

    beta = weight (syn_aug - random_aug) + (1 - weight) (syn_plain - random_plain): the gains over
    random real images with and without augmentation, other things equal. Map, units, source and
    errors are those of `lrs`.
    """
    augmented = _fraction("syn_aug", syn_aug) - _fraction("random_aug", random_aug)
    plain = _fraction("syn_plain", syn_plain) - _fraction("random_plain", random_plain)
    return _robust_score(augmented, plain, weight)


def _robust_score(first: float, second: float, weight: float) -> float:
    if not 0 <= weight <= 1:
        raise ConfigError(f"weight must be from 0 to 1, got {weight}")
    gain = weight * first + (1 - weight) * second
    return (math.exp(gain) - math.exp(-1)) / (math.e - math.exp(-1))


def _fraction(key: str, percent: float) -> float:
    if not 0 <= percent <= 100:
        raise ConfigError(f"{key} must be an accuracy in percent, 0 to 100, got {percent}")
    return percent / 100


def _chance_of_top(values: np.ndarray, count: int) -> np.ndarray:
    """The probability (n,) of each network to be among the `count` best when ties fall by lot."""
    edge = np.sort(values)[-count]
    above, tied = values > edge, values == edge
    return above + tied * (count - above.sum()) / tied.sum()


def _is_constant(a: np.ndarray, b: np.ndarray) -> bool:
    return np.ptp(a) == 0 or np.ptp(b) == 0


def _pair(a: Values, b: Values, *, at_least: int) -> tuple[np.ndarray, np.ndarray]:
    if len(a) != len(b):
        raise ConfigError(f"both scores must be of the same networks, got {len(a)} and {len(b)}")
    return _finite("scores", a, at_least=at_least), _finite("scores", b, at_least=at_least)


def _finite(key: str, values: Values, *, at_least: int) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < at_least:
        raise ConfigError(
            f"{key} must be a list of at least {at_least} numbers, got shape {array.shape}"
        )
    if not np.isfinite(array).all():
        raise ConfigError(f"{key} must be finite, got {array[~np.isfinite(array)][0]}")
    return array
