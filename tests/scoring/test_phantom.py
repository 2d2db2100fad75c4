"""Real scans with published results: a calcium phantom, and what the labelled chests allow to check."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pydicom
import pytest
from scipy import ndimage

from deepcac2.imaging import Geometry, Volume
from deepcac2.scoring import score

SPOKE_MM = 12.5
"""Distance of neighbouring inserts along a spoke of the phantom, large → medium → small (measured)."""
RADIUS_MM = {"large": 5.0, "medium": 4.0, "small": 3.0}
"""Masks: the inserts' own radius (2.5, 1.5, 0.5 mm) with a margin for blur, as in the published study."""


@pytest.fixture(scope="module")
def phantom(shared_data: Path) -> Volume:
    """The scan, read here slice by slice with nothing of the package."""
    slices = [pydicom.dcmread(p) for p in (shared_data / "calcium-phantom" / "Large_rep1").iterdir()]
    slices.sort(key=lambda ds: float(ds.ImagePositionPatient[2]))
    hu = np.stack([ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept) for ds in slices])
    z = [float(ds.ImagePositionPatient[2]) for ds in slices]
    assert np.allclose(np.diff(z), 3.0)
    spacing = (3.0, float(slices[0].PixelSpacing[0]), float(slices[0].PixelSpacing[1]))
    geometry = Geometry(
        shape=hu.shape, spacing=spacing, origin=tuple(float(v) for v in slices[0].ImagePositionPatient)
    )
    return Volume(hu=hu.astype(np.int16), geometry=geometry)


def locate_inserts(volume: Volume) -> tuple[int, dict[tuple[str, str], tuple[float, float]]]:
    """Middle slice, and (row, column) of each (size, density).

    The three large inserts are the largest dense things that are small in every direction (the spine and
    the calibration rod run through many slices); the others lie on the spokes from them to the centre of
    the ring they form. Looked at in a picture: all nine places are those of the visible inserts.
    """
    _, pixel, _ = volume.geometry.spacing
    smooth = ndimage.gaussian_filter(volume.hu.astype(np.float32), (0, 0.8 / pixel, 0.8 / pixel))
    labels, _ = ndimage.label(smooth > 110)
    blobs = []
    for i, (z, y, x) in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[z, y, x] == i
        if z.stop - z.start <= 4 and max(y.stop - y.start, x.stop - x.start) * pixel <= 15:
            blobs.append((int(inside.sum()), i))
    large = []
    for _, i in sorted(blobs)[-3:]:
        inside = labels == i
        large.append((float(smooth[inside].mean()), ndimage.center_of_mass(smooth * inside)))
    large.sort()
    middle = round(float(np.mean([centre[0] for _, centre in large])))

    points = np.array([centre[1:] for _, centre in large])
    a = 2 * (points[1:] - points[0])
    b = (points[1:] ** 2).sum(axis=1) - (points[0] ** 2).sum()
    centre = np.linalg.solve(a, b)  # of the circle through the three
    places = {}
    for density, point in zip(("Low Density", "Medium Density", "High Density"), points, strict=True):
        inward = (centre - point) / np.linalg.norm(centre - point)
        for steps, size in enumerate(("large", "medium", "small")):
            row, column = point + inward * steps * SPOKE_MM / pixel
            places[size, density] = (float(row), float(column))
    return middle, places


def published(shared_data: Path) -> dict[str, dict[str, str]]:
    with (shared_data / "calcium-phantom" / "agatston.csv").open(newline="") as file:
        return {
            row["inserts"]: row
            for row in csv.DictReader(file)
            if (row["vender"], row["scan"]) == ("Canon_Aquilion_One_Vision", "Large_rep1")
        }


@pytest.mark.parametrize("rule", ["agatston", "classic"])  # slices every 3 mm: the same
def test_published_scores_of_the_inserts(phantom: Volume, shared_data: Path, rule: str) -> None:
    middle, places = locate_inserts(phantom)
    rows = published(shared_data)
    y, x = np.ogrid[: phantom.hu.shape[1], : phantom.hu.shape[2]]
    pixel = phantom.geometry.spacing[1]
    for (size, density), (row, column) in places.items():
        mask = np.zeros(phantom.hu.shape, dtype=bool)
        mask[middle - 2 : middle + 3] = np.hypot(y - row, x - column) * pixel <= RADIUS_MM[size]
        factor = float(rows[density]["mass_cal_factor"])
        result = score(phantom, mask, rule=rule, calibration_factor=factor)
        expected = float(rows[density][f"calculated_agat_{size}"])
        mass = float(rows[density][f"calculated_mass_{size}"])
        if size == "small":  # 1 mm inserts: at most a few pixels, where one pixel is a tenth
            assert result.total == pytest.approx(expected, abs=1.5), (size, density)
        else:
            assert result.total == pytest.approx(expected, rel=0.03), (size, density)
            assert result.mass_mg == pytest.approx(mass, rel=0.06), (size, density)


DEEPCAC_V1_SCORES = {"0187": 0.0, "0506": 318.395}
"""Of the manual masks, by the first DeepCAC's own code (see the data's README)."""


@pytest.mark.parametrize("patient", DEEPCAC_V1_SCORES)
def test_labelled_chests_as_far_as_they_go(shared_data: Path, patient: str) -> None:
    """The masks are there at full resolution, their CT is not, so weights cannot be computed.

    What follows from the mask alone is checked: nothing marked scores 0; and the published score is a sum
    of lesion sizes of this scorer times possible weights, in units of the voxel volume / 3 (which that code
    rounds to three digits).
    """
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.ReadImage(str(shared_data / "labelled" / patient / "mask_full.nrrd"))
    mask = sitk.GetArrayFromImage(image) == 3
    spacing = tuple(round(s, 6) for s in image.GetSpacing()[::-1])
    geometry = Geometry(shape=mask.shape, spacing=spacing, origin=(0.0, 0.0, 0.0))
    dense = Volume(hu=np.full(mask.shape, 150, np.int16), geometry=geometry)
    result = score(dense, mask, rule="deepcac-v1")

    unit = geometry.voxel_volume / 3
    published_units = DEEPCAC_V1_SCORES[patient] / round(unit, 3)
    assert published_units == pytest.approx(round(published_units), abs=1e-6)
    sizes = [part.n_voxels for lesion in result.lesions for part in lesion.parts]
    assert result.total == pytest.approx(sum(sizes) * unit)
    assert min(sizes, default=4) > 3
    reachable = {0}
    for size in sizes:
        reachable = {r + size * weight for r in reachable for weight in range(5)}
    assert round(published_units) in reachable
    if patient == "0187":
        assert result.total == 0
