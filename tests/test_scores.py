"""Scores against values worked out by hand or enumerated in full."""

import itertools
import math

import numpy as np
import pytest

from apm_core.errors import ConfigError
from apm_core.scores import (
    ars,
    bootstrap_ci,
    kendall,
    lrs,
    paired_interval,
    pick,
    spearman,
    summarize,
    top_recall,
)


def test_summarize():
    summary = summarize([1, 2, 6])
    # deviations -2, -1, 3: 14 / 2 = 7
    assert summary == {"mean": 3.0, "std": pytest.approx(7**0.5), "n": 3, "runs": [1.0, 2.0, 6.0]}
    assert all(type(value) is float for value in (summary["std"], *summary["runs"]))
    assert summarize(np.array([4.5])) == {"mean": 4.5, "std": 0.0, "n": 1, "runs": [4.5]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], r"values must be a list of at least 1 numbers, got shape \(0,\)"),
        ([[1.0]], r"got shape \(1, 1\)"),
        ([1.0, math.nan], r"values must be finite, got nan"),
    ],
)
def test_summarize_refuses(values, message):
    with pytest.raises(ConfigError, match=message):
        summarize(values)


def test_paired_interval_by_hand():
    # differences 1, 2, 3: mean 2, deviation 1; the table of t has 4.303 for two degrees of freedom
    mean, low, high = paired_interval([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert (mean, low, high) == pytest.approx((2, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)
    assert paired_interval([1.0, 2.0], [0.0, 1.0]) == (1, 1, 1)
    with pytest.raises(ConfigError, match="at least 2 numbers"):
        paired_interval([1.0], [2.0])


def test_rank_correlations_by_hand():
    a, b = [1, 2, 3, 4], [10, 40, 20, 30]
    # rank differences 0, 2, -1, -1: 1 - 6 * 6 / (4 * 15); 4 of 6 pairs agree, 2 do not
    assert spearman(a, b) == pytest.approx(0.4)
    assert kendall(a, b) == pytest.approx(1 / 3)
    assert spearman(a, [-(x**3) for x in a]) == pytest.approx(-1)
    assert kendall(a, [math.exp(x) for x in a]) == pytest.approx(1)


def test_rank_correlations_with_ties_by_hand():
    a, b = [1, 1, 2, 3], [1, 2, 3, 3]
    # mean ranks 1.5 1.5 3 4 and 1 2 3.5 3.5: covariance 4, variances 4.5 and 4.5
    assert spearman(a, b) == pytest.approx(4 / 4.5)
    # 4 pairs agree, none disagrees, one tie on each side of 6 pairs
    assert kendall(a, b) == pytest.approx(4 / 5)


@pytest.mark.parametrize("statistic", [spearman, kendall])
def test_rank_correlation_of_a_constant_is_nan(statistic):
    assert math.isnan(statistic([5, 5, 5], [1, 2, 3]))
    assert math.isnan(statistic([1, 2, 3], [5, 5, 5]))


@pytest.mark.parametrize("statistic", [spearman, kendall])
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1, 2], [1, 2], r"scores must be a list of at least 3 numbers, got shape \(2,\)"),
        ([1, 2, 3], [1, 2], r"both scores must be of the same networks, got 3 and 2"),
        ([1, 2, 3], [1, math.inf, 2], r"scores must be finite, got inf"),
    ],
)
def test_rank_correlations_refuse(statistic, a, b, message):
    with pytest.raises(ConfigError, match=message):
        statistic(a, b)


def test_bootstrap_agrees_with_all_possible_draws():
    """With four networks all 4^4 draws can be listed, so the percentiles are known."""
    a, b = np.array([1.0, 2.0, 5.0, 11.0]), np.array([3.0, 0.0, 7.0, 2.0])

    def mean_product(x, y):
        return float((x * y).mean())

    draws = [list(draw) for draw in itertools.product(range(4), repeat=4)]
    exact = np.percentile([mean_product(a[draw], b[draw]) for draw in draws], [2.5, 97.5])
    low, high = bootstrap_ci(a, b, mean_product, resamples=20_000, seed=0)
    assert (low, high) == pytest.approx(tuple(exact), rel=0.03)


def test_bootstrap_of_a_rank_correlation():
    draws = np.random.default_rng(1)
    a = draws.normal(size=40)
    b = a + draws.normal(size=40)
    low, high = bootstrap_ci(a, b, spearman, resamples=400, seed=3)
    assert -1 < low < spearman(a, b) < high < 1
    assert 0.1 < high - low < 0.7
    assert bootstrap_ci(a, b, spearman, resamples=400, seed=3) == (low, high)
    assert bootstrap_ci(a, b, spearman, resamples=400, seed=4) != (low, high)
    assert bootstrap_ci(a, a, spearman, resamples=50, seed=0) == pytest.approx((1, 1))


def test_bootstrap_leaves_out_draws_without_a_ranking():
    # three networks: one draw in nine repeats a single network, where no ranking exists
    interval = bootstrap_ci([1, 2, 3], [4, 5, 6], kendall, resamples=200, seed=0)
    assert interval == pytest.approx((1, 1))
    low, high = bootstrap_ci([1, 2, 3], [4, 4, 4], kendall, resamples=20, seed=0)
    assert math.isnan(low) and math.isnan(high)


def test_bootstrap_refuses():
    with pytest.raises(ConfigError, match=r"resamples must be positive, got 0"):
        bootstrap_ci([1, 2, 3], [1, 2, 3], spearman, resamples=0, seed=0)
    with pytest.raises(ConfigError, match=r"at least 3 numbers"):
        bootstrap_ci([1, 2], [1, 2], spearman, seed=0)


def test_top_recall_by_hand():
    reference = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    proxy = [9, 0, 8, 1, 7, 2, 3, 4, 5, 6]
    assert top_recall(reference, proxy) == 1.0  # the single best is the same
    assert top_recall(reference, proxy, 0.3) == pytest.approx(2 / 3)  # {0, 1, 2} and {0, 2, 4}
    assert top_recall(reference, proxy, 0.21) == pytest.approx(2 / 3)  # 2.1 is rounded up to 3
    assert top_recall(reference, proxy, 1.0) == 1.0
    assert top_recall(reference, reference[::-1]) == 0.0


def test_top_recall_counts_without_rounding_errors():
    # 0.07 * 100 is 7.000000000000001 in floating point, but 7 networks are meant
    reference = np.arange(100)
    proxy = np.where(reference == 92, 1000, reference)  # brings the eighth best into the seven
    assert top_recall(reference, proxy, 0.07) == pytest.approx(6 / 7)


def test_top_recall_shares_out_ties():
    # the proxy cannot tell the four best apart: each is among its two best half of the time
    reference, proxy = [6, 5, 4, 3, 2, 1], [1, 1, 1, 1, 0, 0]
    assert top_recall(reference, proxy, 1 / 3) == pytest.approx(0.5)
    assert top_recall(reference[::-1], proxy[::-1], 1 / 3) == pytest.approx(0.5)
    assert top_recall(proxy, proxy, 1 / 3) == pytest.approx(0.5)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, math.nan])
def test_top_recall_refuses(fraction):
    with pytest.raises(ConfigError, match=r"fraction must be above 0 and at most 1, got"):
        top_recall([1, 2], [1, 2], fraction)


def test_pick():
    assert pick([50, 90, 70], [1, 2, 3]) == 70.0
    assert pick([50, 90, 70], [3, 1, 3]) == 60.0  # a tie: their mean
    with pytest.raises(ConfigError, match=r"same networks, got 2 and 3"):
        pick([1, 2], [1, 2, 3])
    with pytest.raises(ConfigError, match=r"at least 1 numbers"):
        pick([], [])


def test_lrs_by_hand():
    accuracies = {"real_hard": 85, "syn_hard": 60, "syn_any": 72, "random_any": 50}
    # HLR 0.25, IOR 0.22; alpha -0.015: (0.98511194 - 0.36787944) / 2.35040239
    assert lrs(**accuracies) == pytest.approx(0.2626071, abs=1e-7)
    # all weight on HLR: (e^-0.25 - 1/e) / (e - 1/e); all on IOR: (e^0.22 - 1/e) / (e - 1/e)
    assert lrs(**accuracies, weight=0) == pytest.approx(0.1748302, abs=1e-7)
    assert lrs(**accuracies, weight=1) == pytest.approx(0.3736370, abs=1e-7)


def test_lrs_spans_zero_to_one():
    assert lrs(real_hard=100, syn_hard=0, syn_any=0, random_any=100) == pytest.approx(0)
    assert lrs(real_hard=0, syn_hard=100, syn_any=100, random_any=0) == pytest.approx(1)


def test_ars_by_hand():
    accuracies = {"syn_aug": 70, "random_aug": 50, "syn_plain": 55, "random_plain": 45}
    # gains 0.2 and 0.1: beta 0.15: (1.16183424 - 0.36787944) / 2.35040239
    assert ars(**accuracies) == pytest.approx(0.3377953, abs=1e-7)
    # all weight with augmentation: (e^0.2 - 1/e) / (e - 1/e); without: (e^0.1 - 1/e) / (e - 1/e)
    assert ars(**accuracies, weight=1) == pytest.approx(0.3631392, abs=1e-7)
    assert ars(**accuracies, weight=0) == pytest.approx(0.3136873, abs=1e-7)


@pytest.mark.parametrize("value", [-1, 100.5, math.nan])
def test_robust_scores_want_percent(value):
    good = {"real_hard": 85, "syn_hard": 60, "syn_any": 72, "random_any": 50}
    for key in good:
        with pytest.raises(ConfigError, match=rf"{key} must be an accuracy in percent, 0 to 100"):
            lrs(**{**good, key: value})
    good = {"syn_aug": 70, "random_aug": 50, "syn_plain": 55, "random_plain": 45}
    for key in good:
        with pytest.raises(ConfigError, match=rf"{key} must be an accuracy in percent, 0 to 100"):
            ars(**{**good, key: value})


def test_robust_scores_want_a_weight():
    with pytest.raises(ConfigError, match=r"weight must be from 0 to 1, got 1.5"):
        lrs(real_hard=85, syn_hard=60, syn_any=72, random_any=50, weight=1.5)
    with pytest.raises(ConfigError, match=r"weight must be from 0 to 1, got -1"):
        ars(syn_aug=70, random_aug=50, syn_plain=55, random_plain=45, weight=-1)
