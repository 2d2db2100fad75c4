"""Agreement statistics against published tables, worked examples and other programs."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from scipy.stats import binom

from deepcac2.scoring import risk_group
from deepcac2.stats import agreement as ag

# Shrout and Fleiss 1979, table 2: six targets, four judges; they report ICC(2,1) = 0.29.
SHROUT_FLEISS = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], dtype=float
)
# Cohen 1968: two judges' shares of three diagnoses, of 200 cases; he reports kappa = 0.492.
COHEN = np.array([[88, 14, 18], [10, 40, 10], [2, 6, 12]])
# Bland and Altman 1986: peak expiratory flow of 17 people by two meters, first readings, l/min;
# they report a mean difference of -2.1 and a standard deviation of 38.8.
LARGE = np.array([494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427.0])
MINI = np.array([512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451.0])


def test_icc_of_shrout_and_fleiss() -> None:
    assert float(ag.icc_2_1(SHROUT_FLEISS)) == pytest.approx(0.29, abs=0.005)


def test_icc_falls_with_an_offset_and_a_correlation_does_not() -> None:
    a = np.arange(10.0)
    assert float(ag.icc_2_1(np.stack([a, a], axis=-1))) == pytest.approx(1)
    assert float(ag.icc_2_1(np.stack([a, a + 5], axis=-1))) < 0.5
    assert float(ag.pearson(a, a + 5)) == pytest.approx(1)


def test_kappa_of_cohen() -> None:
    assert float(ag.kappa(COHEN)) == pytest.approx(0.492, abs=0.0005)


def test_weighted_kappa_by_hand() -> None:
    """Of Cohen's table: share of pairs one group apart 0.20 (by chance 0.42), two apart 0.10 (0.17)."""
    assert float(ag.kappa(COHEN, "linear")) == pytest.approx(1 - (0.20 + 2 * 0.10) / (0.42 + 2 * 0.17))
    assert float(ag.kappa(COHEN, "quadratic")) == pytest.approx(1 - (0.20 + 4 * 0.10) / (0.42 + 4 * 0.17))


@pytest.mark.parametrize("weights", ["none", "linear", "quadratic"])
def test_kappa_as_scikit_learn(weights: str) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    a = rng.integers(0, 4, 300)
    b = np.clip(a + rng.integers(-1, 2, 300), 0, 3)
    expected = metrics.cohen_kappa_score(a, b, weights=None if weights == "none" else weights)
    assert float(ag.kappa(ag.confusion(a, b, 4), weights)) == pytest.approx(expected)  # type: ignore[arg-type]


def test_limits_of_agreement_of_bland_and_altman() -> None:
    middle, low, high = (float(v) for v in ag.bland_altman(MINI, LARGE))
    assert middle == pytest.approx(-2.1, abs=0.05)
    assert (high - low) / (2 * 1.96) == pytest.approx(38.8, abs=0.05)
    assert high + low == pytest.approx(2 * middle)


def test_correlations_as_scipy() -> None:
    rng = np.random.default_rng(2)
    a = rng.integers(0, 6, 80).astype(float)  # many ties
    b = a + rng.normal(0, 2, 80)
    assert float(ag.spearman(a, b)) == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    assert float(ag.pearson(a, b)) == pytest.approx(scipy.stats.pearsonr(a, b).statistic)


def test_statistics_of_many_samples_at_once() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 4, (2, 7, 30))
    for statistic in (
        ag.spearman,
        ag.pearson,
        lambda x, y: ag.icc_2_1(np.stack([x, y], axis=-1).astype(float)),
        lambda x, y: ag.kappa(ag.confusion(x, y, 4), "linear"),
    ):
        together = statistic(a.astype(float), b.astype(float))
        assert together.shape == (7,)
        for i in range(7):
            assert together[i] == pytest.approx(float(statistic(a[i].astype(float), b[i].astype(float))))


def test_confusion_by_hand() -> None:
    assert ag.confusion([0, 0, 1, 2], [0, 1, 1, 1], 3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]


def test_groups_are_those_of_the_score() -> None:
    scores = [0, 1e-7, 1e-5, 0.5, 99.9999, 100, 100 + 1e-9, 100.01, 300, 300.1, 5000]
    assert ag.grouped(scores).tolist() == [int(risk_group(s)) for s in scores]


@pytest.mark.parametrize(("n", "patients"), [(40, None), (41, 13), (300, 120), (12, 4), (0, None)])
def test_a_median_and_a_share_are_those_of_the_bootstrap(n: int, patients: int | None) -> None:
    """The ways around the resampled values end at the same numbers."""
    rng = np.random.default_rng(n)
    values = np.round(rng.normal(0, 3, n))  # with ties
    whose = None if patients is None else rng.integers(0, patients, n).tolist()
    if n:
        plain = ag.bootstrap(ag.median, values, patients=whose, n_resamples=300)
        assert ag.bootstrap_median(values, patients=whose, n_resamples=300) == plain
    hits = values > 0
    share = ag.rate(hits, patients=whose, n_resamples=300)
    if share.method != "exact":
        assert share == ag.bootstrap(ag.mean, hits, patients=whose, n_resamples=300)
    without = ag.rate(hits, patients=whose, n_resamples=0)
    assert (without.value, without.low, without.method) == (share.value, None, "")


def test_undefined_is_nan() -> None:
    flat, varied = np.ones(5), np.arange(5.0)
    assert np.isnan(ag.pearson(flat, varied))
    assert np.isnan(ag.spearman(varied, flat))
    assert np.isnan(ag.pearson(varied[:2], varied[:2]))
    assert np.isnan(ag.kappa(ag.confusion([1, 1], [1, 1], 4)))
    assert np.isnan(ag.ratio(np.zeros(3), np.zeros(3)))
    assert np.isnan(ag.icc_2_1(np.ones((5, 2))))


class TestBootstrap:
    def test_interval_as_scipy(self) -> None:
        rng = np.random.default_rng(4)
        a = rng.normal(size=50)
        b = a + rng.normal(size=50)
        ours = ag.bootstrap(ag.pearson, a, b, n_resamples=8000)
        theirs = scipy.stats.bootstrap(
            (a, b),
            lambda x, y, axis: ag.pearson(x, y),
            paired=True,
            n_resamples=8000,
            method="percentile",
            rng=5,
        ).confidence_interval
        assert ours.low == pytest.approx(theirs.low, abs=0.02)
        assert ours.high == pytest.approx(theirs.high, abs=0.02)
        assert (ours.n, ours.method, ours.defined) == (50, "bootstrap", 1.0)

    def test_intervals_cover(self) -> None:
        """The true mean lies within 95 % intervals about 95 times in 100."""
        rng = np.random.default_rng(6)
        inside = 0
        for _ in range(300):
            e = ag.bootstrap(ag.mean, rng.exponential(3.0, 60), n_resamples=500)
            assert e.low is not None
            assert e.high is not None
            inside += e.low <= 3.0 <= e.high
        assert 0.89 <= inside / 300 <= 0.98

    def test_whole_patients_are_drawn(self) -> None:
        """Ten copies of every case are no more patients; taken for patients, they narrow the interval."""
        values = np.random.default_rng(7).normal(size=40)
        alone = ag.bootstrap(ag.mean, values)
        copies = np.repeat(values, 10)
        together = ag.bootstrap(ag.mean, copies, patients=np.repeat(np.arange(40), 10).tolist())
        wrong = ag.bootstrap(ag.mean, copies)

        def width(e: ag.Estimate) -> float:
            return (e.high or 0) - (e.low or 0)

        assert width(together) == pytest.approx(width(alone), rel=0.1)
        assert width(wrong) == pytest.approx(width(alone) / np.sqrt(10), rel=0.1)
        assert together.n == 400

    def test_same_data_same_interval(self) -> None:
        assert ag.bootstrap(ag.mean, MINI) == ag.bootstrap(ag.mean, MINI)

    def test_resamples_without_a_value_are_left_out_and_counted(self) -> None:
        """One patient of five differs: in 0.8^5 of the resamples nothing varies."""
        a, b = np.array([0, 0, 0, 0, 1.0]), np.array([1, 2, 3, 4, 5.0])
        e = ag.bootstrap(ag.pearson, a, b, n_resamples=5000)
        assert e.low is not None
        assert e.defined == pytest.approx(1 - 0.8**5, abs=0.03)

    def test_no_interval_without_ground(self) -> None:
        flat = ag.bootstrap(ag.mean, np.ones(20))
        assert (flat.value, flat.low, flat.high, flat.method) == (1.0, None, None, "")
        few = ag.bootstrap(ag.mean, np.arange(4.0))
        assert (few.value, few.low) == (1.5, None)
        nothing = ag.bootstrap(ag.mean, [])
        assert (nothing.value, nothing.n) == (None, 0)

    def test_no_interval_where_most_resamples_have_no_value(self) -> None:
        """Both ends of 100 values are drawn together in about (1 - 1/e)^2 = 0.4 of the resamples."""

        def with_both_ends(x: np.ndarray) -> np.ndarray:
            return np.where((x.min(axis=-1) == 0) & (x.max(axis=-1) == 99), x.mean(axis=-1), np.nan)

        e = ag.bootstrap(with_both_ends, np.arange(100.0))
        assert (e.value, e.low, e.method) == (49.5, None, "")
        assert e.defined == pytest.approx(0.4, abs=0.04)

    def test_samples_must_fit(self) -> None:
        with pytest.raises(ValueError, match="one length"):
            ag.bootstrap(ag.pearson, [1.0, 2.0], [1.0])


class TestRate:
    def test_all_hits_have_the_exact_interval(self) -> None:
        """Clopper and Pearson: the lower end p of n of n solves p^n = 0.025."""
        e = ag.rate(np.ones(10, bool))
        assert (e.value, e.high, e.method) == (1.0, 1.0, "exact")
        assert e.low == pytest.approx(0.025 ** (1 / 10))
        assert ag.rate(np.zeros(10, bool)).high == pytest.approx(1 - 0.025 ** (1 / 10))

    def test_a_share_has_a_bootstrap_interval(self) -> None:
        e = ag.rate(np.arange(40) < 30)
        assert (e.value, e.method, e.n) == (0.75, "bootstrap", 40)
        assert e.low == pytest.approx(0.75 - 1.96 * np.sqrt(0.75 * 0.25 / 40), abs=0.03)

    def test_nothing(self) -> None:
        assert ag.rate([]) == ag.Estimate(value=None, n=0)

    @pytest.mark.parametrize(("hits", "n"), [(1, 1), (0, 1), (3, 5), (2, 3), (20, 29)])
    def test_few_cases_have_the_exact_interval(self, hits: int, n: int) -> None:
        """At its ends the tails of the binomial distribution hold 2.5 %."""
        e = ag.rate(np.arange(n) < hits)
        assert (e.n, e.method) == (n, "exact")
        assert e.low is not None
        assert e.high is not None
        assert e.low == 0 or binom.sf(hits - 1, n, e.low) == pytest.approx(0.025)
        assert e.high == 1 or binom.cdf(hits, n, e.high) == pytest.approx(0.025)

    def test_few_patients_with_several_cases_have_one_too(self) -> None:
        assert ag.rate([True, False, True], patients=["a", "a", "b"]).method == "exact"
        many = ag.rate(np.arange(20) < 9, patients=[i // 2 for i in range(20)])
        assert many.method == "bootstrap"


def test_two_scans_have_no_icc() -> None:
    assert np.isnan(ag.icc_2_1(np.array([[1.0, 2.0], [5.0, 5.0]])))
    assert ag.agreement([1, 200], [2, 150]).estimates["icc_2_1"].value is None


class TestAgreement:
    TRUE = (0, 0, 0, 50, 100, 200, 400, 900)
    OURS = (0, 0, 5, 0, 120, 210, 290, 1000)

    def test_by_hand(self) -> None:
        found = ag.agreement(self.TRUE, self.OURS)
        e = found.estimates
        assert found.confusion.tolist() == [[2, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
        assert e["accuracy"].value == pytest.approx(4 / 8)
        assert (e["sensitivity_above_0"].value, e["sensitivity_above_0"].n) == (pytest.approx(4 / 5), 5)
        assert (e["specificity_above_0"].value, e["specificity_above_0"].n) == (pytest.approx(2 / 3), 3)
        differences = [0, 0, 5, -50, 20, 10, -110, 100]
        assert e["mean_difference"].value == pytest.approx(np.mean(differences))
        assert e["mean_absolute_error"].value == pytest.approx(np.mean(np.abs(differences)))
        assert e["spearman"].value == pytest.approx(scipy.stats.spearmanr(self.TRUE, self.OURS).statistic)

    def test_other_cuts_and_thresholds(self) -> None:
        found = ag.agreement(self.TRUE, self.OURS, cuts=(0, 10, 100, 400), thresholds=(0, 100))
        assert found.confusion.shape == (5, 5)
        assert found.confusion.sum() == 8
        assert found.estimates["sensitivity_above_100"].value == 1.0
        assert found.estimates["specificity_above_100"].value == pytest.approx(4 / 5)

    def test_nothing_to_compare(self) -> None:
        found = ag.agreement([], [])
        assert all(e.value is None and e.n == 0 for e in found.estimates.values())
        assert found.confusion.sum() == 0
