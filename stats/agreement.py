"""How well two series of scores agree, with intervals: statistics on arrays, no files.

Every statistic reduces the last axis, so that a bootstrap computes all resamples at once; what is undefined
(no variation, no case of a kind) is NaN there and None in an `Estimate`.

[1] Shrout and Fleiss, Psychological Bulletin 86 (1979), 420-428: intraclass correlations.
[2] Bland and Altman, Lancet 327 (1986), 307-310: limits of agreement.
[3] Cohen, Psychological Bulletin 70 (1968), 213-220: weighted kappa.
[4] Efron and Tibshirani, An Introduction to the Bootstrap, Chapman & Hall 1993, chapter 13: percentile
    intervals.
[5] Clopper and Pearson, Biometrika 26 (1934), 404-413: exact intervals of a proportion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..scoring.result import RiskGroup

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Statistic = Callable[..., Any]
"""Maps arrays (..., n), one or more of the same shape, to an array (...)."""

RISK_CUTS = (0.0, 100.0, 300.0)
"""Upper limits of the paper's risk groups 0, 1 and 2, see `risk_group`."""

N_RESAMPLES = 2000
"""Resamples of a bootstrap; chosen: enough for 95 % percentile intervals (at least 1,000 [4])."""
SEED = 20
"""Of the bootstrap, chosen: the same data give the same interval."""

MIN_PATIENTS = 5
"""Fewest patients for a bootstrap interval; chosen: resamples of fewer are too much alike."""

EXACT_BELOW = 30
"""Cases of a share from which its interval is no longer exact; chosen: percentile intervals of fewer are too
narrow."""

_BLOCK = 2_000_000
"""Values resampled at a time: 16 MB per array."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A statistic with its interval.

    Attributes:
        value: None where it is undefined.
        low, high: Ends of the interval; None where there is none.
        n: Cases that went in (for a rate: those that it is a share of).
        method: ``"bootstrap"``, ``"exact"`` (Clopper-Pearson) or ``""`` without an interval.
        defined: Share of the bootstrap's resamples in which the statistic was defined; the interval is
            taken over those.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int
    method: Literal["", "bootstrap", "exact"] = ""
    defined: float = 1.0


def bootstrap(
    statistic: Statistic,
    *samples: npt.ArrayLike,
    patients: Sequence[Any] | None = None,
    n_resamples: int = N_RESAMPLES,
    level: float = 0.95,
    seed: int = SEED,
) -> Estimate:
    """A statistic with its percentile bootstrap interval [4]; whole patients are drawn.

    Args:
        statistic: See `Statistic`.
        samples: Arrays (n,), resampled together.
        patients: Whose case each is, n hashable values; all cases of a drawn patient come along. None:
            every case is another patient's.
        n_resamples: How many; 0: no interval.
        level: Of the interval, in (0, 1).
        seed: Of the resampling.

    Returns:
        The estimate; without an interval for fewer than `MIN_PATIENTS`, where the statistic is undefined in
        more than half of the resamples, and where they are all alike (perfect agreement, say): an interval
        without width would look like certainty.

    Raises:
        ValueError: The samples are not of one length.
    """
    return bootstrap_all(
        {"": statistic}, *samples, patients=patients, n_resamples=n_resamples, level=level, seed=seed
    )[""]


def bootstrap_all(
    statistics: Mapping[str, Statistic],
    *samples: npt.ArrayLike,
    patients: Sequence[Any] | None = None,
    n_resamples: int = N_RESAMPLES,
    level: float = 0.95,
    seed: int = SEED,
) -> dict[str, Estimate]:
    """Several statistics of the same resamples; see `bootstrap`."""
    data = [np.asarray(s, dtype=np.float64) for s in samples]
    n = len(data[0])
    if any(d.shape != (n,) for d in data) or (patients is not None and len(patients) != n):
        raise ValueError("the samples must be one-dimensional and of one length")
    values = {name: _number(statistic(*data)) if n else None for name, statistic in statistics.items()}
    codes = _codes(patients, n)
    wanted = {name: s for name, s in statistics.items() if values[name] is not None}
    if not wanted or not n_resamples or codes.max() + 1 < MIN_PATIENTS:
        return {name: Estimate(value=value, n=n) for name, value in values.items()}
    drawn = _resampled(wanted, data, codes, n_resamples, np.random.default_rng(seed))
    return {
        name: _estimate(value, drawn[name], n, level) if name in drawn else Estimate(value=None, n=n)
        for name, value in values.items()
    }


def bootstrap_median(
    values: npt.ArrayLike,
    *,
    patients: Sequence[Any] | None = None,
    n_resamples: int = N_RESAMPLES,
    level: float = 0.95,
    seed: int = SEED,
) -> Estimate:
    """What `bootstrap` gives of `median`, faster: the values are sorted once and not in each resample.

    Args:
        values: (n,), finite.
        patients, n_resamples, level, seed: See `bootstrap`.
    """
    data = np.asarray(values, dtype=np.float64)
    n = len(data)
    codes = _codes(patients, n)
    value = _number(median(data)) if n else None
    if not n or not n_resamples or codes.max() + 1 < MIN_PATIENTS:
        return Estimate(value=value, n=n)
    order = np.argsort(data)
    data, codes = data[order], codes[order]
    drawn = np.empty(n_resamples)
    first = 0
    for times in _drawn(int(codes.max()) + 1, n_resamples, n, np.random.default_rng(seed)):
        for own in times:
            ends = np.cumsum(own[codes])
            middle = np.searchsorted(ends, [(ends[-1] - 1) // 2, ends[-1] // 2], side="right")
            drawn[first] = data[middle].mean()
            first += 1
    return _estimate(value, drawn, n, level)


def _estimate(value: float | None, drawn: FloatArray, n: int, level: float) -> Estimate:
    """The estimate from a statistic's values in all resamples."""
    finite = drawn[np.isfinite(drawn)]
    defined = len(finite) / len(drawn)
    if defined < 0.5:
        return Estimate(value=value, n=n, defined=defined)
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    if low == high:
        return Estimate(value=value, n=n, defined=defined)
    return Estimate(value=value, low=float(low), high=float(high), n=n, method="bootstrap", defined=defined)


def _resampled(
    statistics: Mapping[str, Statistic],
    data: Sequence[FloatArray],
    codes: IntArray,
    count: int,
    rng: np.random.Generator,
) -> dict[str, FloatArray]:
    """The statistics of `count` resamples of whole patients; resamples with as many cases go together."""
    values = {name: np.empty(count) for name in statistics}
    first = 0
    for drawn in _drawn(int(codes.max()) + 1, count, len(codes), rng):
        times = drawn[:, codes]
        lengths = times.sum(axis=1)
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            resampled = [
                np.repeat(np.tile(d, len(rows)), times[rows].ravel()).reshape(len(rows), length) for d in data
            ]
            for name, statistic in statistics.items():
                values[name][first + rows] = statistic(*resampled)
        first += len(drawn)
    return values


def _drawn(patients: int, count: int, cases: int, rng: np.random.Generator) -> Iterator[IntArray]:
    """How often each patient is in each of `count` resamples, (resamples, patients), some at a time."""
    block = max(1, _BLOCK // cases)
    for first in range(0, count, block):
        picks = rng.integers(0, patients, size=(min(block, count - first), patients))
        yield np.stack([np.bincount(own, minlength=patients) for own in picks])


def _codes(patients: Sequence[Any] | None, n: int) -> IntArray:
    """Whose each of n cases is, as numbers 0, 1, … in the order in which patients first come."""
    if patients is None:
        return np.arange(n)
    known: dict[Any, int] = {}
    return np.array([known.setdefault(p, len(known)) for p in patients], dtype=np.int64)


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def rate(
    hits: npt.ArrayLike,
    *,
    patients: Sequence[Any] | None = None,
    n_resamples: int = N_RESAMPLES,
    level: float = 0.95,
) -> Estimate:
    """Share of true values with its interval.

    A bootstrap of nothing but hits, or of none, has no width, one of few cases is too narrow, and of fewer
    than `MIN_PATIENTS` there is none: there the interval is the exact one [5], of independent cases. Few are
    fewer than `EXACT_BELOW`, where no patient has two.

    Args:
        hits: bool (n,).
        patients, n_resamples, level: See `bootstrap`.
    """
    values = np.asarray(hits, dtype=np.float64)
    n = len(values)
    if not n or not n_resamples:
        return Estimate(value=_number(values.mean()) if n else None, n=n)
    codes = _codes(patients, n)
    found, cases = np.bincount(codes, values).astype(np.int64), np.bincount(codes)
    few = len(cases) < MIN_PATIENTS or (len(cases) == n and n < EXACT_BELOW)
    if few or values.min() == values.max():
        return exact_rate(int(values.sum()), n, level=level)
    rng = np.random.default_rng(SEED)
    drawn = [(times @ found) / (times @ cases) for times in _drawn(len(cases), n_resamples, n, rng)]
    return _estimate(float(values.mean()), np.concatenate(drawn), n, level)


def exact_rate(hits: int, n: int, *, level: float = 0.95) -> Estimate:
    """A share of n > 0 independent cases with its exact interval [5].

    >>> exact_rate(3, 5)  # doctest: +ELLIPSIS
    Estimate(value=0.6, low=0.1466..., high=0.9472..., n=5, method='exact', defined=1.0)
    """
    from scipy.stats import binomtest

    exact = binomtest(hits, n).proportion_ci(confidence_level=level, method="exact")
    return Estimate(value=hits / n, low=float(exact.low), high=float(exact.high), n=n, method="exact")


def mean(values: FloatArray) -> FloatArray:
    """Mean of the last axis."""
    return np.asarray(values.mean(axis=-1))


def median(values: FloatArray) -> FloatArray:
    """Median of the last axis."""
    return np.asarray(np.median(values, axis=-1))


def ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    """Σ part / Σ whole over the last axis; NaN where the whole is 0."""
    return _divided(part.sum(axis=-1), whole.sum(axis=-1))


def pearson(a: FloatArray, b: FloatArray) -> FloatArray:
    """Pearson's correlation, in [−1, 1]; NaN where a or b does not vary, and of fewer than three points.

    Args:
        a, b: (..., n).
    """
    if a.shape[-1] < 3:
        return np.full(a.shape[:-1], np.nan)
    varies = (np.ptp(a, axis=-1) > 0) & (np.ptp(b, axis=-1) > 0)
    a, b = a - a.mean(axis=-1, keepdims=True), b - b.mean(axis=-1, keepdims=True)
    r = _divided((a * b).sum(axis=-1), np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1)))
    return np.where(varies, np.clip(r, -1, 1), np.nan)


def spearman(a: FloatArray, b: FloatArray) -> FloatArray:
    """Spearman's rank correlation, ties sharing their mean rank; as `pearson` otherwise."""
    from scipy.stats import rankdata

    return pearson(rankdata(a, axis=-1), rankdata(b, axis=-1))


def _spearman_of_codes(a: FloatArray, b: FloatArray) -> FloatArray:
    """`spearman` of whole numbers from 0 on, ranked by counting, which is faster than by sorting."""
    return pearson(_ranks(a), _ranks(b))


def _ranks(codes: FloatArray) -> FloatArray:
    """Mean ranks along the last axis."""
    flat = codes.astype(np.int64).reshape(-1, codes.shape[-1])
    size = int(flat.max(initial=0)) + 1
    own = flat + np.arange(len(flat))[:, None] * size
    counts = np.bincount(own.ravel(), minlength=len(flat) * size).reshape(len(flat), size)
    ranks = counts.cumsum(axis=1) - (counts - 1) / 2
    return np.asarray(ranks.ravel()[own].reshape(codes.shape))


def icc_2_1(ratings: FloatArray) -> FloatArray:
    """ICC(2,1) [1]: agreement of single ratings, subjects and raters drawn at random (two-way model).

    Unlike a correlation it falls when one rater is higher throughout. (MSR − MSE) /
    (MSR + (k − 1) MSE + k (MSC − MSE) / n), from the mean squares of subjects, raters and residual.

    Args:
        ratings: (..., n, k): n subjects, k raters.

    Returns:
        (...), at most 1; NaN with fewer than three subjects or two raters, or where nothing varies.
    """
    n, k = ratings.shape[-2:]
    if n < 3 or k < 2:
        return np.full(ratings.shape[:-2], np.nan)
    grand = ratings.mean(axis=(-2, -1), keepdims=True)
    rows, columns = ratings.mean(axis=-1, keepdims=True), ratings.mean(axis=-2, keepdims=True)
    ms_rows = k * ((rows - grand) ** 2).sum(axis=(-2, -1)) / (n - 1)
    ms_columns = n * ((columns - grand) ** 2).sum(axis=(-2, -1)) / (k - 1)
    ms_rest = ((ratings - rows - columns + grand) ** 2).sum(axis=(-2, -1)) / ((n - 1) * (k - 1))
    return _divided(ms_rows - ms_rest, ms_rows + (k - 1) * ms_rest + k * (ms_columns - ms_rest) / n)


def bland_altman(reference: FloatArray, predicted: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean difference predicted − reference, and the 95 % limits of agreement, mean ∓ 1.96 SD [2].

    Args:
        reference, predicted: (..., n), n ≥ 2.

    Returns:
        (mean, lower limit, upper limit), (...) each, in the unit of the input.
    """
    difference = predicted - reference
    middle = difference.mean(axis=-1)
    spread = 1.96 * difference.std(axis=-1, ddof=1)
    return middle, middle - spread, middle + spread


def grouped(scores: npt.ArrayLike, cuts: Sequence[float] = RISK_CUTS) -> IntArray:
    """Group of each score: 0 up to the first cut (included), 1 up to the second, and so on.

    Scores are first rounded to six digits, as `risk_group` does.

    >>> grouped([0, 0.1, 100, 100.1, 300, 300.1]).tolist()
    [0, 1, 1, 2, 2, 3]
    >>> grouped([0, 1, 11, 401], cuts=(0, 10, 100, 400)).tolist()
    [0, 1, 2, 4]

    Raises:
        InputError: The cuts do not ascend from 0 or more.
    """
    if not cuts or not 0 <= cuts[0] <= cuts[-1] < math.inf or not all(a < b for a, b in pairwise(cuts)):
        raise InputError("cut points must ascend from 0 or more, such as 0,100,300")
    rounded = np.round(np.asarray(scores, dtype=np.float64), 6)
    return np.searchsorted(np.asarray(cuts), rounded, side="left").astype(np.int64)


def group_names(cuts: Sequence[float] = RISK_CUTS) -> tuple[str, ...]:
    """What the groups between these cut points are called, with their limits.

    >>> group_names((0, 10, 100))
    ('0', '>0–10', '>10–100', '>100')
    >>> group_names((0, 100, 300))
    ('0 very low (0)', '1 low (>0–100)', '2 moderate (>100–300)', '3 high (>300)')
    """
    first = "0" if cuts[0] == 0 else f"0–{cuts[0]:g}"
    limits = (first, *(f">{a:g}–{b:g}" for a, b in pairwise(cuts)), f">{cuts[-1]:g}")
    if tuple(cuts) == tuple(RISK_CUTS):
        return tuple(f"{int(g)} {g.label} ({limit})" for g, limit in zip(RiskGroup, limits, strict=True))
    return limits


def confusion(reference: npt.ArrayLike, predicted: npt.ArrayLike, n_groups: int) -> IntArray:
    """Counts (..., reference group, predicted group) of groups 0 to `n_groups` − 1.

    Args:
        reference, predicted: Whole numbers (..., n).
    """
    a, b = np.asarray(reference).astype(np.int64), np.asarray(predicted).astype(np.int64)
    outer = a.shape[:-1]
    cells = (a * n_groups + b).reshape(math.prod(outer), a.shape[-1])
    cells = cells + np.arange(len(cells))[:, None] * n_groups**2
    counts = np.bincount(cells.ravel(), minlength=len(cells) * n_groups**2)
    return counts.reshape(*outer, n_groups, n_groups).astype(np.int64)


def kappa(counts: npt.NDArray[Any], weights: Literal["none", "linear", "quadratic"] = "none") -> FloatArray:
    """Cohen's κ: agreement beyond chance, in [−1, 1] [3].

    Args:
        counts: (..., k, k), see `confusion`.
        weights: How much a disagreement of d groups weighs: ``"none"``: all the same; ``"linear"``: d;
            ``"quadratic"``: d².

    Returns:
        (...); NaN where both use one and the same group only.
    """
    k = counts.shape[-1]
    distance = np.abs(np.arange(k)[:, None] - np.arange(k)[None, :])
    power = {"none": 0, "linear": 1, "quadratic": 2}[weights]
    weight = np.where(distance > 0, distance.astype(np.float64) ** power, 0.0)
    total = counts.sum(axis=(-2, -1), keepdims=True)
    expected = _divided(counts.sum(axis=-1, keepdims=True) * counts.sum(axis=-2, keepdims=True), total)
    disagreement = _divided((weight * counts).sum(axis=(-2, -1)), (weight * expected).sum(axis=(-2, -1)))
    return np.asarray(1 - disagreement)


def _divided(a: Any, b: Any) -> FloatArray:
    """a / b, NaN where b is 0."""
    a, b = np.broadcast_arrays(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64))
    return np.asarray(np.divide(a, b, out=np.full(a.shape, np.nan), where=b != 0))


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Two series of scores compared.

    Attributes:
        estimates: By name: ``spearman``, ``pearson``, ``icc_2_1``; ``mean_difference`` (predicted −
            reference), ``lower_limit``, ``upper_limit`` (Bland-Altman), ``mean_absolute_error``;
            ``kappa``, ``kappa_linear``, ``kappa_quadratic`` and ``accuracy`` of the groups; and for each
            threshold t ``sensitivity_above_t`` and ``specificity_above_t``, or ``…_from_t``.
        confusion: int64 (reference group, predicted group).
        cuts: Of the groups.
    """

    estimates: Mapping[str, Estimate]
    confusion: IntArray = field(repr=False)
    cuts: tuple[float, ...]


def agreement(
    reference: npt.ArrayLike,
    predicted: npt.ArrayLike,
    *,
    patients: Sequence[Any] | None = None,
    cuts: Sequence[float] = RISK_CUTS,
    thresholds: Sequence[float] = (0,),
    thresholds_from: Sequence[float] = (),
    n_resamples: int = N_RESAMPLES,
) -> Agreement:
    """Everything about the agreement of two series of scores, with 95 % intervals.

    Args:
        reference, predicted: Scores (n,), finite.
        patients: See `bootstrap`.
        cuts: Groups' upper limits, ascending, see `grouped`.
        thresholds: A score above one of these is positive.
        thresholds_from: A score of at least one of these is positive.
        n_resamples: Of the bootstrap; 0: without intervals.

    Raises:
        ValueError: The scores are not of one length.
    """
    a, b = np.asarray(reference, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    k = len(cuts) + 1
    groups = grouped(a, cuts), grouped(b, cuts)
    ranks = [np.unique(s, return_inverse=True)[1] for s in (a, b)]

    def limit(i: int) -> Statistic:
        return lambda x, y: bland_altman(x, y)[i] if x.shape[-1] > 1 else np.nan

    def cohen(weights: Literal["none", "linear", "quadratic"]) -> Statistic:
        return lambda x, y: kappa(confusion(x, y, k), weights)

    of_scores: dict[str, Statistic] = {
        "pearson": pearson,
        "icc_2_1": lambda x, y: icc_2_1(np.stack([x, y], axis=-1)),
        "mean_difference": lambda x, y: mean(y - x),
        "lower_limit": limit(1),
        "upper_limit": limit(2),
        "mean_absolute_error": lambda x, y: mean(np.abs(y - x)),
    }
    of_groups = {
        "kappa": cohen("none"),
        "kappa_linear": cohen("linear"),
        "kappa_quadratic": cohen("quadratic"),
    }
    drawing: dict[str, Any] = {"patients": patients, "n_resamples": n_resamples}
    estimates = {
        "spearman": bootstrap(_spearman_of_codes, *ranks, **drawing),
        **bootstrap_all(of_scores, a, b, **drawing),
        **bootstrap_all(of_groups, *groups, **drawing),
        "accuracy": rate(groups[0] == groups[1], **drawing),
    }
    tests = [(f"above_{t:g}", grouped(a, [t]) > 0, grouped(b, [t]) > 0) for t in thresholds]
    tests += [(f"from_{t:g}", np.round(a, 6) >= t, np.round(b, 6) >= t) for t in thresholds_from]
    for test, positive, called in tests:
        for name, chosen, hits in (
            ("sensitivity", positive, called),
            ("specificity", ~positive, ~called),
        ):
            own = None if patients is None else [p for p, c in zip(patients, chosen, strict=True) if c]
            estimates[f"{name}_{test}"] = rate(hits[chosen], patients=own, n_resamples=n_resamples)
    return Agreement(estimates=estimates, confusion=confusion(*groups, k), cuts=tuple(cuts))
