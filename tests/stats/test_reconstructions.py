"""Reconstructions of one acquisition, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from deepcac2.dicom.gates import is_sharp_kernel
from deepcac2.reporting.cohort_sections import reconstruction_section
from deepcac2.stats.reconstructions import Reconstructions, reconstructions
from deepcac2.stats.scans import Scans, scored

NAMES = ["study_uid", "kernel", "slice_thickness", "agatston_score", "n_slices"]


def scans(rows: list[tuple[object, ...]]) -> Scans:
    frame = pd.DataFrame([[str(v) for v in row] for row in rows], columns=NAMES)
    uids = frame.index.astype(str)
    more = {"patient_id": "p" + frame["study_uid"], "series_uid": uids, "status": "scored", "study_date": ""}
    return scored(frame.assign(**more))


def cohort() -> list[tuple[object, ...]]:
    """Six studies with a soft, a sharp and a thin soft series; the sharp one scores 10·i more, the thin 2."""
    rows: list[tuple[object, ...]] = []
    for i in range(6):
        base = 95 + i
        rows += [
            (i, "LUNG", 2.5, base + 10 * i, 100),
            (i, "STANDARD", 1.25, base + 2, 200),
            (i, "STANDARD", 2.5001, base, 100),
        ]
    return rows


def compared(rows: list[tuple[object, ...]]) -> Reconstructions | None:
    return reconstructions(scans(rows), sharp=is_sharp_kernel)


def test_pairs_by_kernel_and_thickness() -> None:
    found = compared(cohort())
    assert found is not None
    assert (found.everything.n, found.everything.studies, found.left) == (18, 6, 0)
    kinds = {(k.kernels, k.thickness): k for k in found.kinds}
    assert set(kinds) == {
        ("soft and sharp", "same"),
        ("same kernel", "2.5 and 1.25 mm"),
        ("soft and sharp", "1.25 and 2.5 mm"),
    }
    sharp = kinds["soft and sharp", "same"]
    difference = 10.0 * np.arange(6)
    assert sharp.median.value == pytest.approx(25)
    expected = difference.mean() + np.array([-1.96, 1.96]) * difference.std(ddof=1)
    assert sharp.limits == pytest.approx(tuple(expected))
    # 95, 96, 97, 98, 99, 100 are all low; with 0, 10, … more: low, then moderate
    assert sharp.regrouped == 5
    thin = kinds["same kernel", "2.5 and 1.25 mm"]
    assert thin.median.value == pytest.approx(2)
    assert thin.limits == pytest.approx((2, 2))
    assert thin.regrouped == 2  # 99 and 100 become 101 and 102
    both = kinds["soft and sharp", "1.25 and 2.5 mm"]
    assert both.median.value == pytest.approx(23)
    text, pictures = reconstruction_section(found)
    assert pictures["reconstructions"].png.startswith(b"\x89PNG")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert ["all", "", "18", "6", "9.0"] in [row[:5] for row in rows]
    (row,) = (r for r in rows if r[:2] == ["same kernel", "2.5 and 1.25 mm"])
    assert row[-2:] == ["2.0 to 2.0", "2 (33.3%)"]
    assert "no frame of reference" in text


def test_who_is_compared() -> None:
    """Only series of one study, one of each kernel and thickness; what is not known is counted."""
    found = compared(
        [
            (1, "STANDARD", 2.5, 10, 90),
            (1, "STANDARD", 2.5, 99, 80),  # fewer slices
            (1, "B30f", 2.5, 14, 90),
            (1, "", 1, 99, 90),
            (1, "LUNG", "", 99, 90),
            ("", "LUNG", 1, 99, 90),
            (2, "LUNG", 2.5, 99, 90),
        ]
    )
    assert found is not None
    assert found.everything.scores.tolist() == [[14, 10]]  # B30f comes first by name
    assert found.everything.limits is None
    assert (found.kinds, found.left) == ((), 1)
    assert [(s.reason, s.rows) for s in found.flow.steps] == [
        ("no study_uid", 1),
        ("no kernel", 1),
        ("no slice_thickness", 1),
        ("another series of the study with its kernel and thickness", 1),
    ]
    text, _ = reconstruction_section(found)
    assert "1 pairs are of kinds with fewer than five" in text


def test_no_pair_no_section() -> None:
    assert compared([(1, "LUNG", 2.5, 9, 90), (2, "STANDARD", 2.5, 9, 90)]) is None
    assert compared([(1, "LUNG", 2.5, 9, 90), (1, "LUNG", 2.501, 9, 95)]) is None
    some = scans(cohort())
    older = Scans(frame=some.frame.drop(columns="slice_thickness"), flow=some.flow)
    assert reconstructions(older, sharp=is_sharp_kernel) is None
