"""The page about a case, as PDF and in DICOM: what stands on it, and that others can read the files."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deepcac2.dicom import GATES, discover, read_segmentation, read_series
from deepcac2.imaging.labels import ARTERIES as NAMES
from deepcac2.imaging.labels import NOT_CORONARY as KINDS
from deepcac2.imaging.labels import NOT_SURE, Labels, calcium_labels, heart_labels
from deepcac2.outputs.case_page import TITLE, case_page, lesion_numbers
from deepcac2.outputs.organizer import is_target
from deepcac2.outputs.sheet import HEIGHT, MARGIN, Sheet, Style, wrapped
from deepcac2.pipeline import Case
from deepcac2.pipeline.arteries import ARTERIES, NOT_CORONARY, divided
from deepcac2.pipeline.doubt import DOUBT
from deepcac2.pipeline.facts import CALCIUM, CT, HEART, SCORE
from deepcac2.pipeline.grades import graded
from deepcac2.pipeline.writer import kept, queries
from deepcac2.scoring import score

PROVENANCE = {
    "deepcac2": "1.2",
    "workflow": "default",
    "weights": {"heart": {"name": "h", "sha256": "00"}},
}
HOSTILE = "$\\frac{1}{0}$ <b>&山 " + "W" * 400


@pytest.fixture(scope="module")
def case(simulated: Path) -> Case:
    """All calcium lies in the LAD, but for its first lesion, of which nobody knows."""
    series = next(s for s in discover(simulated).series if s.modality == "CT")
    volume = read_series(series).volume
    masks = read_segmentation(simulated / "SIM-0003" / "truth.seg.dcm", volume.geometry)
    calcium = masks["calcium"]
    counted = score(volume, calcium)
    found = Case(
        series=replace(series, patient_age=60, patient_sex="F"),
        facts={
            CT: volume,
            HEART: heart_labels(masks["heart"]),
            CALCIUM: calcium_labels(calcium),
            SCORE: counted,
        },
    )
    names = calcium.astype(np.uint8) * np.uint8(2)
    names[lesion_numbers(found) == 1] = NOT_SURE.value
    found = found.add(ARTERIES, Labels(array=names, classes=(*NAMES, NOT_SURE)))
    found = found.add(NOT_CORONARY, Labels(array=np.zeros_like(names), classes=KINDS))
    return graded(divided(found, rule="agatston"))


def words(sheet: Sheet) -> list[str]:
    on_pages = [text.get_text() for page in sheet.pages for text in page.texts]
    in_pictures = [t.get_text() for page in sheet.pages for axes in page.axes for t in axes.texts]
    return on_pages + in_pictures


def test_the_page_says_what_is_known(case: Case) -> None:
    sheet = case_page(case, PROVENANCE)
    assert sheet is not None
    assert len(sheet.pages) == 1
    said, everything = words(sheet), "\n".join(words(sheet))
    total = case[SCORE].total
    assert f"Agatston score {total:.1f}" in everything
    for text in ("SIM-0003", "60 years, F", "Hoff", "LAD", "artery not sure", "5 cm", "coronal"):
        assert text in everything, text
    assert said.count("R") == 4  # three slices and the coronal view
    assert said.count("S") == said.count("I") == 2
    assert everything.count("Research use only") == 2
    slices = {int(m[1]) for text in said if (m := re.fullmatch(r"slice (\d+)", text))}
    shown = {part.slice_index + 1 for lesion in case[SCORE].lesions for part in lesion.parts}
    assert len(slices) == 3
    assert slices & shown
    first = said[said.index("Slices", said.index("Lesion")) + 1 :]
    assert first[:3] == ["1", "artery not sure", f"{case[SCORE].lesions[0].score:.1f}"]


def test_every_lesion_has_its_voxels(case: Case) -> None:
    numbers, found = lesion_numbers(case), case[SCORE]
    np.testing.assert_array_equal(numbers > 0, found.counted)
    assert {x.index: x.n_voxels for x in found.lesions} == {
        int(n): int(c) for n, c in zip(*np.unique(numbers[numbers > 0], return_counts=True), strict=True)
    }


def test_warnings_and_cautions_are_sentences(case: Case) -> None:
    allowed = GATES["coarse-pixels"].finding("pixels are 2.8 mm", allow=["coarse-pixels"])
    sheet = case_page(replace(case, findings=(allowed, GATES["kvp"].finding("taken at 140 kV"))), PROVENANCE)
    assert sheet is not None
    said = words(sheet)
    assert "! in spite of coarse-pixels: pixels are 2.8 mm" in said
    assert "· Taken at 140 kV." in said


def test_how_sure_the_score_is(case: Case) -> None:
    doubt = {"possible_score": 12.34, "possible": [], "interval": {"score": [80.2, 140.9]}}
    sheet = case_page(case.add(DOUBT, doubt), PROVENANCE)
    assert sheet is not None
    text = " ".join(words(sheet))
    assert "80 to 141, as measured" in text
    assert "12.3 more, not sure" in text


def test_without_a_result_there_is_no_page(case: Case) -> None:
    assert case_page(Case(series=case.series, facts={CT: case[CT]}), PROVENANCE) is None


def test_text_from_outside_is_shown_as_it_is_and_stays_on_the_page(case: Case) -> None:
    series = replace(case.series, patient_id=HOSTILE, series_description=HOSTILE)
    sheet = case_page(replace(case, series=series), PROVENANCE)
    assert sheet is not None
    assert "$\\frac{1}{0}$" in " ".join(words(sheet))
    assert "\\u5c71" in " ".join(words(sheet))
    assert sheet.pdf(TITLE).startswith(b"%PDF")
    page = np.asarray(next(iter(sheet.pictures(50))))
    border = int(MARGIN / 25.4 * 50) - 3
    assert (page[:, :border] == 255).all()
    assert (page[:, -border:] == 255).all()


def test_what_does_not_fit_goes_to_the_next_page() -> None:
    sheet = Sheet(foot="foot")
    for _ in range(60):
        sheet.table(("a", "b"), [["1", "long " * 20]] * 2, (20, 40))
    assert len(sheet.pages) > 1
    for page in sheet.pages:
        assert "foot" in [t.get_text() for t in page.texts]
        assert min(t.get_position()[1] for t in page.texts) > (MARGIN - 4) / HEIGHT


def test_lines_are_no_wider_than_asked() -> None:
    lines = list(wrapped("a bb ccc " + "d" * 100, 20, Style(size=10)))
    assert " ".join(lines).replace(" ", "") == "abbccc" + "d" * 100
    assert all(len(line) < 14 for line in lines)


def test_the_same_case_gives_the_same_pdf_which_others_read(case: Case, tmp_path: Path) -> None:
    first, second = (case_page(case, PROVENANCE) for _ in range(2))
    assert first is not None
    assert second is not None
    pdf = first.pdf(TITLE)
    assert pdf == second.pdf(TITLE)
    (tmp_path / "page.pdf").write_bytes(pdf)
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext (poppler-utils) is not installed")
    text = subprocess.run(
        ["pdftotext", "-layout", str(tmp_path / "page.pdf"), "-"], capture_output=True, text=True, check=True
    ).stdout
    assert f"Agatston score {case[SCORE].total:.1f}" in text
    assert "Volume, mm³" in text


def test_a_target_or_a_word_asks_for_it() -> None:
    assert {"pdf", "dicom-pdf", "secondary-capture"} <= set(kept())
    for query in ("pdf:mod=page", "dicom:mod=pdf", "dicom:mod=sc"):
        assert is_target(f"{query}-->[i:PatientID]/[i:SeriesInstanceUID]/page")
        assert query not in queries()  # mhubio knows no such files
