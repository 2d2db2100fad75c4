"""Age and sex, as headers state them and as removing names leaves them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from deepcac2.dicom import discover
from deepcac2.dicom.patient import age_at, sex_of


@pytest.mark.parametrize(
    ("stated", "birth", "day", "age"),
    [
        ("062Y", "", "", 62),
        ("62Y", "", "", 62),
        ("001Y", "", "", 1),
        ("089Y", "", "", 89),
        ("018M", "", "", 1),
        ("780M", "", "", 65),
        ("", "19500301", "20120301", 62),
        ("", "19500301", "20120229", 61),
        ("", "19480229", "20110228", 62),
        ("062Y", "19500301", "20130228", 62),
        ("061Y", "19500301", "20130228", 61),  # a year apart: stated on another day
        ("062Y", "", "20130228", 62),
        ("062Y", "19500301", "", 62),
        ("062Y", "00000000", "20130228", 62),  # no date contradicts nothing
    ],
)
def test_an_age_that_is_known(stated: str, birth: str, day: str, age: int) -> None:
    assert age_at(stated, birth, day) == (age, "")


@pytest.mark.parametrize(
    ("stated", "birth", "day", "why"),
    [
        ("", "", "20130228", "there is no PatientAge"),
        ("", "19500301", "", "there is no PatientAge"),
        ("", "1950", "20130228", "there is no PatientAge"),
        ("", "19501301", "20130228", "there is no PatientAge"),
        ("000Y", "", "", "PatientAge is 0 or less"),
        ("000Y", "19500301", "20130228", "PatientAge is 0 or less"),  # what was removed is not worked out
        ("011M", "", "", "PatientAge is 0 or less"),
        ("200D", "", "", "PatientAge is 0 or less"),
        ("090Y", "", "", "PatientAge is above 89"),
        ("999Y", "", "", "PatientAge is above 89"),
        (">89", "", "", "PatientAge is no age"),
        (">89Y", "", "", "PatientAge is no age"),
        ("62", "", "", "PatientAge is no age"),
        ("062y", "", "", "PatientAge is no age"),
        ("062Y\\063Y", "", "", "PatientAge is no age"),
        ("", "19000101", "20130228", "PatientBirthDate is above 89"),
        ("", "20130228", "20130228", "PatientBirthDate is 0 or less"),
        ("", "20130301", "20130228", "PatientBirthDate is 0 or less"),
        ("062Y", "19400301", "20130228", "contradict"),
    ],
)
def test_what_is_no_age(stated: str, birth: str, day: str, why: str) -> None:
    age, said = age_at(stated, birth, day)
    assert age is None
    assert why in said
    assert not birth or birth not in said


def test_only_male_and_female_are_a_sex() -> None:
    assert [sex_of(s) for s in ("M", "F", "O", "", "m", "male", "M\\F")] == ["M", "F", "", "", "", "", ""]


@pytest.mark.parametrize(
    ("header", "age", "sex"),
    [
        ({"PatientAge": "062Y", "PatientSex": "F"}, 62, "F"),
        ({"PatientBirthDate": "19500301", "AcquisitionDate": "20120229", "StudyDate": "20120301"}, 61, ""),
        ({"PatientBirthDate": "19500301", "StudyDate": "20120301", "PatientSex": "O"}, 62, ""),
        ({"PatientAge": "000Y", "PatientBirthDate": "19500301", "StudyDate": "20120301"}, None, ""),
        ({"PatientAge": ">89", "PatientSex": "M"}, None, "M"),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_a_series_says_age_and_sex(
    ct, hu, tmp_path: Path, header: dict[str, str], age: int | None, sex: str
) -> None:
    def edit(_: int, ds: Dataset) -> None:
        for keyword in ("PatientAge", "PatientBirthDate", "PatientSex", "AcquisitionDate", "StudyDate"):
            if keyword in ds:
                del ds[keyword]
        for keyword, value in header.items():
            setattr(ds, keyword, value)

    ct.write(tmp_path, hu, edit=edit)
    (series,) = discover(tmp_path).series
    assert (series.patient_age, series.patient_sex) == (age, sex)
    assert bool(series.no_age) == (age is None)
    assert "19500301" not in repr(series)
