"""What is said of a scan that the weights were not trained on, and of one that they were."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepcac2.dicom import GATES, Series
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.labels import heart_labels
from deepcac2.pipeline.case import Case, Stop
from deepcac2.pipeline.details import details
from deepcac2.pipeline.domain import compare, stated
from deepcac2.pipeline.facts import CT, DOMAIN, HEART
from deepcac2.pipeline.gates import gates
from deepcac2.pipeline.results import result_row
from deepcac2.weights import Domain, WeightSet, resolve

GRID = Geometry(shape=(60, 160, 160), spacing=(2.0, 2.0, 2.0), origin=(0.0, 0.0, 0.0))
TRAINED = {
    "kernels": ["soft", "BONE"],
    "noise_hu": [5, 90],
    "kvp": [100, 140],
    "thickness_mm": [1, 3],
    "increment_mm": [0.7, 3],
    "pixel_mm": [0.5, 2],
    "field_of_view_mm": [300, 460],
    "coverage_mm": [100, 400],
    "contrast": False,
}
"""A domain that holds the scan made by `case`."""


def case(noise: float = 20.0, grid: Geometry = GRID, **header: Any) -> Case:
    """A ball-shaped heart in lung, with noise."""
    z, y, x = np.indices(grid.shape)
    middle = [(n - 1) / 2 for n in grid.shape]
    heart = (z - middle[0]) ** 2 + (y - middle[1]) ** 2 + (x - middle[2]) ** 2 < 25**2
    hu = np.where(heart, 40, -850) + np.random.default_rng(0).normal(0, noise, grid.shape)
    facts = {"kernel": "STANDARD", "kvp": 120.0, "slice_thickness": 2.0} | header
    return Case(
        series=Series(series_uid="1.2", **facts),
        facts={CT: Volume(hu=np.rint(hu).astype(np.int16), geometry=grid), HEART: heart_labels(heart)},
    )


def weights(role: str = "calcium", domain: dict[str, Any] | None = TRAINED) -> WeightSet:
    return WeightSet(
        name=f"set-{role}", role=role, path=Path(), files={}, hash="", domain=Domain.parse(domain)
    )


def compared(scan: Case, *sets: WeightSet) -> Case:
    for found in sets or (weights(),):
        scan = stated(scan, found)
    return compare(scan)


def test_a_scan_inside_the_domain_gets_no_warning() -> None:
    done = compared(case(), weights("heart"), weights("calcium"))
    assert done.findings == ()
    assert done[DOMAIN]["outside"] == {}
    scan = done[DOMAIN]["scan"]
    assert scan.pop("noise_hu") == pytest.approx(20, rel=0.05)
    assert scan == {
        "kernel": "STANDARD",
        "contrast": False,
        "kvp": 120.0,
        "thickness_mm": 2.0,
        "increment_mm": 2.0,
        "pixel_mm": 2.0,
        "field_of_view_mm": 320.0,
        "coverage_mm": 120.0,
    }


SMALL = replace(GRID, shape=(60, 100, 100))
SHORT = replace(GRID, shape=(45, 160, 160))
COARSE = replace(GRID, shape=(60, 128, 128), spacing=(2.0, 2.5, 2.5))
APART = replace(GRID, spacing=(3.2, 2.0, 2.0))


DIFFERENCES = {
    "kernel": (
        case(kernel="BONEPLUS"),
        "kernel BONEPLUS; the calcium weights were trained on soft kernels and BONE: noise and edges may",
    ),
    "kernel, not named": (case(kernel=""), "the header names no kernel; the calcium weights were trained on"),
    "noise, much": (case(noise=150), "trained on 5 to 90 HU: small lesions may be noise"),
    "noise, little": (case(noise=2), "trained on 5 to 90 HU: how they do here is not known"),
    "kvp": (case(kvp=80.0), "taken at 80 kV; the calcium weights were trained on 100 to 140 kV: "),
    "slices, thin": (
        case(slice_thickness=0.6),
        "slices 0.6 mm thick; the calcium weights were trained on slices 1 to 3 mm thick: ",
    ),
    "slices, apart": (
        case(grid=APART),
        "slices 3.2 mm apart; the calcium weights were trained on slices 0.7 to 3 mm apart: ",
    ),
    "field, small": (
        case(grid=SMALL),
        "a field of view of 200 mm; the calcium weights were trained on fields of view of 300 to 460 mm: ",
    ),
    "field, coarse": (
        case(grid=COARSE),
        "pixels of 2.5 mm; the calcium weights were trained on pixels of 0.5 to 2 mm: ",
    ),
    "field, short": (
        case(grid=SHORT),
        "90 mm of the body scanned; the calcium weights were trained on scans 100 to 400 mm long: ",
    ),
    "contrast": (
        case(contrast_agent="Omnipaque"),
        "a contrast-enhanced scan; the calcium weights were trained on scans without contrast agent: ",
    ),
}


@pytest.mark.parametrize("what", DIFFERENCES)
def test_each_difference_is_one_warning_with_both_sides(what: str) -> None:
    scan, words = DIFFERENCES[what]
    topic = what.split(",")[0]
    done = compared(scan)
    assert done[DOMAIN]["outside"] == {topic: ["calcium"]}
    (finding,) = done.findings
    assert finding.code == f"off-domain-{topic}"
    assert words in finding.message
    assert not finding.fatal
    assert "\n" not in finding.message


def test_a_warning_reads_as_a_sentence_with_the_measured_value() -> None:
    (finding,) = compared(case(noise=150), weights("heart"), weights("calcium")).findings
    measured = f"{compared(case(noise=150))[DOMAIN]['scan']['noise_hu']:g}"
    assert finding.message == (
        f"noise of {measured} HU in the heart; the heart and calcium weights were trained on 5 to 90 HU: "
        "small lesions may be noise"
    )


def test_values_on_the_edge_as_headers_round_them_are_inside() -> None:
    assert compared(case(slice_thickness=3.02, kvp=100.0, kernel="bone")).findings == ()
    assert compared(case(contrast_agent="none")).findings == ()
    assert compared(case(contrast_agent="ORAL")).findings == ()


def test_kinds_of_kernels_and_names() -> None:
    sharp = weights(domain={"kernels": ["sharp"]})
    assert compared(case(kernel="B70f"), sharp).findings == ()
    (finding,) = compared(case(kernel="Br40d\\3"), sharp).findings
    assert finding.message.startswith("kernel Br40d\\3; the calcium weights were trained on sharp kernels:")
    both = weights(domain={"kernels": ["soft", "sharp"]})
    assert compared(case(kernel=""), both).findings == ()
    assert compared(case(kernel="Br40d\\3"), weights(domain={"kernels": ["BR40D"]})).findings == ()


def test_what_a_gate_said_is_completed_and_not_said_again() -> None:
    gates = {
        "sharp-kernel": "reconstructed with the sharp kernel B70f: noise and edges may raise the score",
        "kvp": "taken at 80 kV: HU are higher",
        "thick-slices": "slices are 5 mm thick: small calcifications may be missed",
        "contrast-measured": "the inner heart has a median of 200 HU",
    }
    scan = replace(
        case(kernel="B70f", kvp=80.0, slice_thickness=5.0),
        findings=tuple(GATES[c].finding(m, allow=["contrast-measured"]) for c, m in gates.items()),
    )
    done = compared(scan, weights("heart"), weights("calcium"))
    assert [f.code for f in done.findings] == list(gates)
    ends = [f.message.removeprefix(gates[f.code]) for f in done.findings]
    assert ends == [
        "; the heart and calcium weights were trained on soft kernels and BONE",
        "; the heart and calcium weights were trained on 100 to 140 kV",
        "; the heart and calcium weights were trained on slices 1 to 3 mm thick",
        "; the heart and calcium weights were trained on scans without contrast agent",
    ]


def test_a_gate_that_the_weights_do_not_mind_stays_as_it_is() -> None:
    said = GATES["sharp-kernel"].finding("reconstructed with the sharp kernel BONE")
    assert compared(replace(case(kernel="BONE"), findings=(said,))).findings == (said,)


def test_sets_that_differ_are_named_apart() -> None:
    heart = weights("heart", {"noise_hu": [5, 40]})
    calcium = weights("calcium", {"noise_hu": [5, 60]})
    (finding,) = compared(case(noise=100), heart, calcium).findings
    assert (
        "the heart weights were trained on 5 to 40 HU, the calcium weights were trained on 5 to 60 HU:"
        in (finding.message)
    )
    done = compared(case(noise=50), heart, calcium)
    assert done[DOMAIN]["outside"] == {"noise": ["heart"]}
    assert "calcium" not in done.findings[0].message


def test_weights_that_say_nothing_are_named_once() -> None:
    done = compared(case(noise=300), weights("heart", None), weights("calcium", None))
    (finding,) = done.findings
    assert finding.code == "domain-unknown"
    assert "the heart weights set-heart and calcium weights set-calcium do not say" in finding.message
    assert done[DOMAIN]["outside"] == {"unknown": ["heart", "calcium"]}
    assert done[DOMAIN]["scan"]["noise_hu"] == pytest.approx(300, rel=0.05)


def test_what_was_compared_is_in_details_and_table() -> None:
    done = compared(case(noise=150, kvp=80.0))
    row = result_row(done)
    assert row.noise_hu == done[DOMAIN]["scan"]["noise_hu"] == pytest.approx(150, rel=0.05)
    assert row.off_domain == "noise;kvp"
    assert row.warnings == "off-domain-noise;off-domain-kvp"
    content = json.loads(json.dumps(details(done, {})))
    assert content["domain"] == done[DOMAIN]
    assert content["domain"]["weights"]["calcium"]["domain"] == json.loads(json.dumps(TRAINED))
    assert [w["code"] for w in content["warnings"]] == ["off-domain-noise", "off-domain-kvp"]


def test_without_a_comparison_the_table_is_empty() -> None:
    stop = Stop(status="rejected", code="not-ct", reason="no CT")
    row = result_row(Case(series=Series(series_uid="1.2"), stop=stop))
    assert (row.noise_hu, row.off_domain) == (None, "")


def test_no_gate_of_the_domain_rejects() -> None:
    ours = [g for g in gates().values() if "domain" in g.code]
    assert len(ours) == 7
    assert not any(g.fatal or g.overridable for g in ours)


@pytest.mark.parametrize("role", ["heart", "calcium"])
def test_bundled_weights_state_their_domain(role: str) -> None:
    domain = resolve("bundled", role).domain
    assert domain is not None
    assert domain.kernels
    assert domain.contrast is False
    assert domain.measured_on
    for name in ("noise_hu", "kvp", "thickness_mm", "increment_mm", "field_of_view_mm"):
        assert getattr(domain, name) is not None, name
    assert Domain.parse(domain.to_dict()) == domain
