"""Encapsulated PDF and Secondary Capture, judged by dciodvfy and pydicom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom

from deepcac2.dicom import discover
from deepcac2.dicom.document import write_encapsulated_pdf, write_secondary_capture


def test_a_page_as_dicom(simulated: Path, tmp_path: Path, assert_valid: Callable[[Path, str], None]) -> None:
    series = next(s for s in discover(simulated).series if s.modality == "CT")
    seg = simulated / "SIM-0003" / "truth.seg.dcm"
    more = {"series": series, "derived": seg, "title": "Coronary calcium", "version": "1.2"}
    pdf = b"%PDF-1.4 odd"[:-1]
    for name in ("a.dcm", "b.dcm"):
        write_encapsulated_pdf(tmp_path / name, pdf, **more)
    assert_valid(tmp_path / "a.dcm", "EncapsulatedPDF")
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    found, source = pydicom.dcmread(tmp_path / "a.dcm"), pydicom.dcmread(seg)
    assert found.EncapsulatedDocument[: found.EncapsulatedDocumentLength] == pdf
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "ContentDate"):
        assert found[keyword].value == source[keyword].value
    assert found.BurnedInAnnotation == "YES"
    assert found.SeriesInstanceUID != source.SeriesInstanceUID

    pages = [np.full((3, 5, 3), value, np.uint8) for value in (10, 200)]
    write_secondary_capture(tmp_path / "sc.dcm", pages, **more)
    assert_valid(tmp_path / "sc.dcm", "SCImage")
    capture = pydicom.dcmread(tmp_path / "sc.dcm")
    np.testing.assert_array_equal(capture.pixel_array, np.concatenate(pages))
    assert capture.SOPInstanceUID != found.SOPInstanceUID
    assert capture.BurnedInAnnotation == "YES"
