"""The FHIR bundle says what the SR says, in resources that a library of others takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import highdicom as hd
import pydicom
import pytest

from deepcac2.outputs.fhir import fhir_bundle

SCT, DCM = "http://snomed.info/sct", "http://dicom.nema.org/resources/ontology/DCM"


@pytest.fixture(scope="module")
def sr(simulated_results: Path) -> pydicom.Dataset:
    return pydicom.dcmread(next(simulated_results.rglob("cac.sr.dcm")))


@pytest.fixture(scope="module")
def bundle(sr: pydicom.Dataset) -> dict[str, Any]:
    return json.loads(json.dumps(fhir_bundle(sr)))


def of_kind(bundle: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    found = [entry["resource"] for entry in bundle["entry"]]
    return [resource for resource in found if resource["resourceType"] == kind]


def coded(concept: dict[str, Any]) -> tuple[str, str]:
    (coding,) = concept["coding"]
    return coding.get("system", ""), coding["code"]


def test_it_is_valid_r4(bundle: dict[str, Any]) -> None:
    resources = pytest.importorskip("fhir.resources.R4B.bundle")
    parsed = resources.Bundle.model_validate_json(json.dumps(bundle))
    assert json.loads(parsed.model_dump_json(exclude_none=True)) == bundle
    kinds = [type(entry.resource).__name__ for entry in parsed.entry]
    assert kinds[:3] == ["DiagnosticReport", "ImagingStudy", "Device"]
    assert set(kinds[3:]) == {"Observation"}


def test_every_measurement_of_the_sr_but_the_lesions(sr: pydicom.Dataset, bundle: dict[str, Any]) -> None:
    """Read by highdicom, which knows nothing of the bundle."""
    content = hd.sr.MeasurementReport.from_sequence([sr])
    groups = [
        *content.get_volumetric_roi_measurement_groups(),
        *(
            group
            for group in content.get_image_measurement_groups()
            if not group.tracking_identifier.startswith("Lesion ")
        ),
    ]
    expected = {
        (g.tracking_identifier, str(m.name.value), float(m.value), str(m.unit.value))
        for g in groups
        for m in g.get_measurements()
    }
    by_url = {entry["fullUrl"]: entry["resource"] for entry in bundle["entry"]}
    (report,) = of_kind(bundle, "DiagnosticReport")
    found = set()
    for result in report["result"]:
        group = by_url[result["reference"]]
        (name,) = [
            i["value"]
            for i in group["identifier"]
            if i.get("type", {}).get("coding", [{}])[0].get("code") == "tracking-id"
        ]
        for member in (by_url[m["reference"]] for m in group["hasMember"]):
            if "valueQuantity" in member:
                value = member["valueQuantity"]
                found.add((name, member["code"]["coding"][0]["code"], value["value"], value["code"]))
    assert found == expected
    assert ("Coronary calcium", "450360000") in {f[:2] for f in found}


def test_score_grades_arteries_and_what_must_be_known(
    bundle: dict[str, Any], simulated_results: Path
) -> None:
    details = json.loads(
        next(
            p for p in simulated_results.rglob("details.json") if p.parent.joinpath("cac.sr.dcm").exists()
        ).read_text()
    )
    scores = [o for o in of_kind(bundle, "Observation") if coded(o["code"]) == (SCT, "450360000")]
    total, *arteries = scores
    assert total["valueQuantity"]["value"] == pytest.approx(details["score"]["total"], abs=0.005)
    assert coded(total["method"]) == (DCM, "112055")
    assert coded(total["bodySite"]) == (SCT, "41801008")
    shares = {k: v["score"] for k, v in details["arteries"]["arteries"].items() if v["score"]}
    assert [a["valueQuantity"]["value"] for a in arteries] == pytest.approx(list(shares.values()), abs=0.005)
    grades = [
        o["valueCodeableConcept"]
        for o in of_kind(bundle, "Observation")
        if o["code"].get("text") == "CAC-DRS category"
    ]
    assert [g["text"] for g in grades] == [details["grades"]["cac_drs"].partition("/")[0]]
    (report,) = of_kind(bundle, "DiagnosticReport")
    assert "Research use only" in report["conclusion"]
    assert all(w["message"] in report["conclusion"].replace("degrees", "°") for w in details["warnings"][:1])


def test_references_lead_somewhere_and_nothing_is_final(sr: pydicom.Dataset, bundle: dict[str, Any]) -> None:
    urls = [entry["fullUrl"] for entry in bundle["entry"]]
    assert len(set(urls)) == len(urls)
    named: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            named.extend([value["reference"]] if "reference" in value else [])
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(bundle)
    assert set(named) <= set(urls)
    assert set(urls[1:]) <= set(named)
    statuses = {r["status"] for r in (*of_kind(bundle, "Observation"), *of_kind(bundle, "DiagnosticReport"))}
    assert statuses == {"preliminary"}
    (study,) = of_kind(bundle, "ImagingStudy")
    assert study["identifier"][0]["value"] == f"urn:oid:{sr.StudyInstanceUID}"
    assert {s["modality"]["code"]: s["numberOfInstances"] for s in study["series"]} == {
        "CT": 90,
        "SEG": 1,
        "SR": 1,
    }
    assert fhir_bundle(sr) == bundle  # the same again
    searches = [entry["request"]["ifNoneExist"] for entry in bundle["entry"]]
    assert len(set(searches)) == len(searches)


def test_codes_come_from_the_sr_alone(sr: pydicom.Dataset, bundle: dict[str, Any]) -> None:
    known = {(str(item.CodeValue), str(item.CodeMeaning)) for item in _codes(sr)}

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            if value.get("system") in (SCT, DCM) and "display" in value:
                yield value["code"], value["display"]
            for inner in value.values():
                yield from walk(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from walk(inner)

    assert set(walk(bundle)) <= known


def _codes(item: Any) -> Any:
    for element in item:
        if element.VR == "SQ":
            for inner in element.value:
                if "CodeValue" in inner:
                    yield inner
                yield from _codes(inner)


def test_somebody_without_an_id_and_without_a_date(sr: pydicom.Dataset) -> None:
    from copy import deepcopy

    changed = deepcopy(sr)
    changed.PatientID, changed.StudyDate, changed.VerificationFlag = "", "", "VERIFIED"
    bundle = fhir_bundle(changed)
    (report,) = of_kind(bundle, "DiagnosticReport")
    assert report["subject"] == {"type": "Patient", "display": "not named in the images"}
    assert "effectiveDateTime" not in report
    assert report["status"] == "final"
