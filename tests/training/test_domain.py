"""The stated domain of a training."""

from __future__ import annotations

from deepcac2.simulation import sample_acquisition
from deepcac2.training.export import simulated_domain
from deepcac2.weights.description import Domain


def test_the_domain_holds_nearly_all_the_patients_it_came_from():
    seeds = range(500, 800)
    domain = Domain.parse(simulated_domain({1: seeds}))
    assert domain is not None
    scans = [sample_acquisition(s) for s in seeds]
    for name, values in {
        "thickness_mm": [s.thickness for s in scans],
        "kvp": [s.kvp for s in scans],
        "field_of_view_mm": [s.field_of_view for s in scans],
    }.items():
        low, high = getattr(domain, name)
        inside = sum(low - 1e-3 <= v <= high + 1e-3 for v in values)
        assert inside >= 0.97 * len(values), name
        assert min(values) <= low + 1e-3, name
    assert domain.kernels == ("soft", "sharp")
    assert domain.contrast is False


def test_few_kernels_are_named():
    seed = next(s for s in range(100) if sample_acquisition(s).kernel == "BONE")
    assert simulated_domain({1: [seed]})["kernels"] == ["BONE"]


def test_no_patients_no_claim():
    assert simulated_domain({1: []}) == {}


def test_the_domain_is_that_of_the_version_that_was_drawn() -> None:
    """The second version has fields from 150 mm (gated scans) on; the first begins at 280."""
    fields = [simulated_domain({version: range(200)})["field_of_view_mm"][0] for version in (1, 2)]
    assert fields[0] > 250
    assert fields[1] < 200
