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


def scan(**more: object) -> dict[str, object]:
    """As `describe_scan` says a scan."""
    values = {"noise_hu": 12.4, "kvp": 80.0, "thickness_mm": 3.0, "increment_mm": 1.5, "pixel_mm": 0.6}
    return {
        "kernel": "Qr36d\\3",
        "contrast": False,
        **values,
        "field_of_view_mm": 310.0,
        "coverage_mm": 150,
        **more,
    }


def test_annotated_scans_belong_to_the_domain() -> None:
    """Of themselves alone, and beside simulated ones, whose tube voltages lie above theirs."""
    alone = Domain.parse(
        simulated_domain({}, [scan(), scan(kernel="", kvp=None, noise_hu=20, contrast=True)])
    )
    assert alone is not None
    assert (alone.kernels, alone.kvp, alone.noise_hu) == (("Qr36d",), (80, 80), (12, 20))
    assert alone.contrast is True
    beside = Domain.parse(simulated_domain({1: range(20)}, [scan()] * 5))
    assert beside is not None
    assert beside.kvp is not None
    assert beside.kvp[0] == 80 < min(sample_acquisition(s).kvp for s in range(20))
    assert "Qr36d" in (beside.kernels or ()) or "soft" in (beside.kernels or ())
