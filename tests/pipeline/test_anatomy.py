"""Nothing but a heart in a chest is believed: the gates with the real heart network, on a small zoo."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deepcac2.dicom import discover, read_series
from deepcac2.imaging import Volume
from deepcac2.imaging.files import volume_from_image
from deepcac2.models.heart.anatomy import objection, surroundings
from deepcac2.models.heart.step import check_heart
from deepcac2.pipeline.gates import gates
from deepcac2.simulation import SimulatedPatient, default_geometry, simulate_patient

if TYPE_CHECKING:
    from deepcac2.models.heart.network import HeartModel

_SPEC = importlib.util.spec_from_file_location("zoo", Path(__file__).parents[1] / "zoo.py")
assert _SPEC is not None
assert _SPEC.loader is not None
zoo: ModuleType = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(zoo)


def first_only(names: tuple[str, ...]) -> list[Any]:
    """Parameters of which all but the first are slow."""
    return [names[0], *(pytest.param(name, marks=pytest.mark.slow) for name in names[1:])]


REAL = ("CIP-64x64", "LIDC-IDRI-0306", "Lung_Dx-A0001-B", "Lung_Dx-A0001-L", "Lung_Dx-A0002")
CUT_TO_THE_HEART = ("LUNG1-001", "LIDC-IDRI-0314", "LIDC-IDRI-0476", "LIDC-IDRI-0350", "4D-Lung-113")

OTHERS = [g.code for g in gates().values() if g.overridable and g.code != "chest-implausible"]
"""Everything that can be allowed but the gate under test: it must hold where all others are lifted."""


@pytest.fixture(scope="module")
def model() -> HeartModel:
    import torch

    from deepcac2.models.heart.network import HeartModel

    return HeartModel.load("bundled", torch.device("cpu"))


@pytest.fixture(scope="module")
def simulated_patient() -> SimulatedPatient:
    return simulate_patient(20004, geometry=default_geometry(20004, size=128, slices=70))


@pytest.fixture(scope="module")
def patient(simulated_patient: SimulatedPatient) -> Volume:
    return simulated_patient.volume


@pytest.fixture(scope="module")
def true_heart(simulated_patient: SimulatedPatient) -> np.ndarray:
    return simulated_patient.heart


@pytest.fixture(scope="module")
def found_heart(model: HeartModel, patient: Volume) -> np.ndarray:
    return model.predict(patient).mask


def verdict(model: HeartModel, volume: Volume, allow: tuple[str, ...] = ()) -> str:
    """The code of the gate that stops this volume, "" where none does."""
    return judged(volume, model.predict(volume).mask, allow)


def judged(volume: Volume, heart: np.ndarray, allow: tuple[str, ...] = ()) -> str:
    """The same with what was found as heart."""
    _, findings = check_heart(volume, heart, allow=allow)
    return next((f.code for f in findings if f.fatal), "")


@pytest.mark.parametrize("name", zoo.NO_CHESTS)
def test_what_is_no_chest_is_refused_whatever_else_is_allowed(model: HeartModel, name: str) -> None:
    volume = zoo.NO_CHESTS[name]()
    heart = model.predict(volume).mask
    assert judged(volume, heart, tuple(OTHERS)) in ("heart-not-found", "no-chest", "chest-implausible")
    if name in ("head", "head on foam", "head in air of -940", "water", "legs", "ball in cork"):
        # without lungs: nothing lifts it
        assert judged(volume, heart, (*OTHERS, "chest-implausible")) == "no-chest"


def test_a_simulated_chest_passes_and_its_turns_and_parts_do_not(model: HeartModel, patient: Volume) -> None:
    assert verdict(model, patient) == ""
    for name, other in (*zoo.turned(patient), *zoo.parts(patient)):
        assert verdict(model, other) != "", name


@pytest.mark.parametrize("turn", ["face down", "mirrored", "turned by half", "turned by a quarter"])
def test_a_turned_stack_is_seen_even_with_the_right_heart(
    patient: Volume, true_heart: np.ndarray, turn: str
) -> None:
    # the true heart, turned along: no fault of the network helps
    mask = Volume(hu=true_heart.astype(np.int16), geometry=patient.geometry)
    assert objection(surroundings(patient, true_heart)) is None
    turned = dict(zoo.turned(patient))[turn]
    found = objection(surroundings(turned, dict(zoo.turned(mask))[turn].hu > 0))
    assert found is not None
    assert found[0].code == "chest-implausible"


@pytest.mark.parametrize(
    ("scale", "wrong"),
    [
        ((1.0, 1.0, 1.0), False),
        ((0.4, 1.0, 1.0), True),  # slices of 2.5 mm taken for 1 mm
        ((2.0, 1.0, 1.0), True),  # every other slice lost
        ((0.4, 1.43, 1.43), True),  # all three taken for 1 mm
    ],
)
def test_another_slice_distance_than_the_scan_s_is_seen(
    patient: Volume, true_heart: np.ndarray, scale: tuple[float, float, float], wrong: bool
) -> None:
    z, y, x = (a * b for a, b in zip(patient.geometry.spacing, scale, strict=True))
    other = Volume(hu=patient.hu, geometry=replace(patient.geometry, spacing=(z, y, x)))
    _, found = check_heart(other, true_heart)
    assert ("as high as wide" in " ".join(f.message for f in found)) == wrong


@pytest.mark.parametrize("part", ["below", "above", "left", "stripe"])
@pytest.mark.parametrize("value", [-1024, 0, -3000])
def test_slices_that_lack_a_part_are_seen(
    patient: Volume, true_heart: np.ndarray, part: str, value: int
) -> None:
    """A patient with 1,234 points had 772 where half of a few slices was zero, and nothing was said."""
    y, x = np.argwhere(true_heart)[:, 1:].mean(axis=0).astype(int)
    gone = {"below": np.s_[y:], "above": np.s_[:y], "left": np.s_[:, x:], "stripe": np.s_[y : y + 3]}[part]
    zs = np.flatnonzero(true_heart.any(axis=(1, 2)))
    some = zs[len(zs) // 2 :: 3][:4]
    hu, found = patient.hu.copy(), true_heart.copy()
    for z in some:
        hu[z][gone], found[z][gone] = value, False  # nothing is found where nothing is shown
    _, findings = check_heart(Volume(hu=hu, geometry=patient.geometry), found, allow=["broken-slices"])
    (finding,) = (f for f in findings if f.code == "broken-slices")
    assert finding.fatal
    assert f"in 4 of {len(hu)} slices (number {some[0] + 1} from the lowest" in finding.message
    assert "broken-slices" not in {f.code for f in check_heart(patient, true_heart)[1]}


@pytest.mark.parametrize("mm", [180, 250])
def test_a_field_zoomed_onto_the_heart_passes(patient: Volume, found_heart: np.ndarray, mm: float) -> None:
    middle = np.argwhere(found_heart).mean(axis=0)
    box = [slice(None)]
    for axis in (1, 2):
        half = mm / 2 / patient.geometry.spacing[axis]
        box.append(slice(max(0, round(middle[axis] - half)), round(middle[axis] + half)))
    box[0] = slice(0, patient.hu.shape[0])
    part = Volume(hu=patient.hu[tuple(box)].copy(), geometry=patient.geometry.part(box))
    assert objection(surroundings(part, found_heart[tuple(box)])) is None


def moved(heart: np.ndarray, by: tuple[int, int, int]) -> np.ndarray:
    """A mask moved by voxels (z, y, x); what leaves the scan is gone."""
    result = np.zeros_like(heart)
    index = np.argwhere(heart) + by
    inside = ((index >= 0) & (index < heart.shape)).all(axis=1)
    result[tuple(index[inside].T)] = True
    return result


@pytest.mark.parametrize(
    ("where", "mm"),
    {
        "liver": (-70, 0, -50),
        "spleen": (-70, 30, 60),
        "upper mediastinum": (100, 0, 0),
        "left lung": (0, 0, 80),
        "right lung": (0, 0, -80),
        "breast bone": (0, -60, 0),
    }.items(),
)
def test_a_heart_found_elsewhere_in_a_chest_is_refused(
    patient: Volume, found_heart: np.ndarray, where: str, mm: tuple[float, float, float]
) -> None:
    by = [round(m / s) for m, s in zip(mm, patient.geometry.spacing, strict=True)]
    assert objection(surroundings(patient, moved(found_heart, (by[0], by[1], by[2])))) is not None, where


@pytest.mark.slow
def test_orientation_of_the_array_does_not_matter(patient: Volume, true_heart: np.ndarray) -> None:
    from dataclasses import replace

    (z, y, x), grid = patient.hu.shape, patient.geometry
    origin = grid.to_lps([0.0, y - 1.0, x - 1.0])
    axes = (grid.axes[0], *(tuple(-c for c in a) for a in grid.axes[1:]))
    feet_up = replace(grid, origin=tuple(origin), axes=axes)
    other = Volume(hu=patient.hu[:, ::-1, ::-1].copy(), geometry=feet_up)
    assert z == other.hu.shape[0]
    here, there = surroundings(patient, true_heart), surroundings(other, true_heart[:, ::-1, ::-1].copy())
    for name, value in here.to_dict().items():
        assert there.to_dict()[name] == pytest.approx(value, abs=6.0 if name.endswith("mm") else 0.05), name


def real_chest(folder: Path) -> Volume:
    series = next(s for s in discover(folder).series if s.modality == "CT")
    volume: Volume = zoo.coarse(read_series(series).volume)
    return volume


@pytest.mark.parametrize("name", first_only(REAL))
def test_real_chests_pass(model: HeartModel, shared_data: Path, name: str) -> None:
    assert verdict(model, real_chest(shared_data / "chest" / name)) == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_turned_real_chests_do_not_pass(model: HeartModel, shared_data: Path, name: str) -> None:
    chest = real_chest(shared_data / "chest" / name)
    for turn, other in zoo.turned(chest):
        assert verdict(model, other) != "", turn


@pytest.mark.parametrize("name", first_only(CUT_TO_THE_HEART))
def test_real_chests_cut_to_the_heart_pass(model: HeartModel, shared_data: Path, name: str) -> None:
    assert verdict(model, real_chest(shared_data / "annotated" / name / "ct")) == ""


@pytest.mark.parametrize("name", ["0187", "0506"])
def test_real_labelled_chests_pass(model: HeartModel, shared_data: Path, name: str) -> None:
    assert verdict(model, volume_from_image(shared_data / "labelled" / name / "image_3mm.nrrd")) == ""


@pytest.mark.parametrize("folder", ["ge-tilted-irregular", "philips-tilted-mixed"])
def test_real_heads_are_refused_whatever_else_is_allowed(
    model: HeartModel, shared_data: Path, folder: str
) -> None:
    heads = [s for s in discover(shared_data / "dicom-zoo" / folder).series if len(s.slices) > 20]
    assert len(heads) == 1
    volume = zoo.coarse(read_series(heads[0]).volume, 1.0)
    assert verdict(model, volume, tuple(OTHERS)) in ("no-chest", "chest-implausible")


def test_a_real_phantom_is_refused(model: HeartModel, shared_data: Path) -> None:
    phantom = real_chest(shared_data / "calcium-phantom" / "Large_rep1")
    assert verdict(model, phantom, tuple(OTHERS)) == "no-chest"
