"""Labels: classes of voxels in one array."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from deepcac2.imaging.labels import ARTERIES, CALCIUM, HEART, Concept, Labels, calcium_labels


def test_a_mask_is_labels_with_one_class_and_no_copy() -> None:
    mask = np.zeros((2, 3, 4), bool)
    mask[1, 2, 3] = True
    labels = calcium_labels(mask)
    assert labels.classes == (CALCIUM,)
    assert np.shares_memory(labels.array, mask)
    assert np.shares_memory(labels.mask, mask)
    np.testing.assert_array_equal(labels.mask, mask)
    np.testing.assert_array_equal(labels.where("coronary calcium"), mask)
    with pytest.raises(KeyError):
        labels.where("heart")


def test_several_classes_in_one_array() -> None:
    lad, rca = np.zeros((2, 2, 3, 3), bool)
    lad[0, 0, :2] = True
    rca[0, 0, 1:] = True
    arteries = {label.name: label for label in ARTERIES}
    array = np.zeros((2, 3, 3), np.uint8)
    array[rca] = arteries["RCA"].value
    array[lad] = arteries["LAD"].value
    labels = Labels(array=array, classes=(arteries["LAD"], arteries["RCA"]))
    assert [label.name for label in labels.classes] == ["LAD", "RCA"]
    assert labels.array[0, 0].tolist() == [2, 2, 4]
    np.testing.assert_array_equal(labels.mask, lad | rca)
    np.testing.assert_array_equal(labels.where("LAD"), lad)
    np.testing.assert_array_equal(labels.where("RCA"), rca & ~lad)


@pytest.mark.parametrize("classes", [(), (HEART, CALCIUM), ARTERIES[::-1]])
def test_classes_have_values_of_their_own(classes: tuple) -> None:
    with pytest.raises(ValueError, match="ascending values"):
        Labels(array=np.zeros((1, 1, 1), np.uint8), classes=classes)


def test_an_array_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        Labels(array=np.zeros((1, 1, 1), np.int16), classes=(HEART,))


def test_codes_are_those_of_the_standard() -> None:
    """Against pydicom's copy of PS3.16."""

    def same(ours: Concept, theirs: Code) -> bool:
        return (ours.value, ours.scheme) == (theirs.value, theirs.scheme_designator)

    assert same(HEART.kind, codes.SCT.Heart)
    assert same(CALCIUM.kind, codes.SCT.PathologicCalcification)
    assert CALCIUM.region is not None
    assert same(CALCIUM.region, codes.SCT.CoronaryArtery)
    theirs = {
        "LM": codes.SCT.LeftMainCoronaryArtery,
        "LAD": codes.SCT.LeftAnteriorDescendingCoronaryArtery,
        "LCX": codes.SCT.CircumflexCoronaryArtery,
        "RCA": codes.SCT.RightCoronaryArtery,
    }
    for label in ARTERIES:
        assert label.region is not None
        assert same(label.region, theirs[label.name])
        assert label.region.meaning == theirs[label.name].meaning
