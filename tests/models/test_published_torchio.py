"""The published DeepCAC2 against TorchIO itself, with which its authors resample and crop.

Written from the facts of their implementation. Network, resampling, crop, patches and score share nothing
with the package, and the CT goes through files, as there. Weights are random; the last bias makes about 1 %
of the voxels that the network sees calcium.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

from deepcac2.dicom.discovery import discover
from deepcac2.dicom.reading import read_series
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.crop import Patches
from deepcac2.models.deepcac2.predict import PublishedModel
from deepcac2.models.unet3d import PUBLISHED_WIDTHS, build
from deepcac2.scoring import score
from deepcac2.simulation import simulate_patient
from deepcac2.simulation.patient import heart_centroid

tio = pytest.importorskip("torchio", reason="needs torchio, with which the published results are judged")

Triple = tuple[int, int, int]
SMALL = Patches(crop_shape=(13, 24, 20), patch_shape=(4, 8, 8), patch_step=(2, 4, 4))


def grid_of(image: sitk.Image, shape: Triple) -> Geometry:
    """The grid as a file keeps it: a NIfTI header has 32 bits, and then other voxels lie halfway."""
    x, y, z = np.array(image.GetDirection()).reshape(3, 3).T.tolist()
    return Geometry(
        shape=shape,
        spacing=image.GetSpacing()[::-1],
        origin=image.GetOrigin(),
        axes=(tuple(z), tuple(y), tuple(x)),
    )


class Oracle:
    """The published way, one transform and one patch after the other."""

    def __init__(
        self, volume: Volume, heart: np.ndarray, folder: Path, suffix: str, published: ModuleType
    ) -> None:
        self.published = published
        files = {}
        for name, array in (("ct", volume.hu), ("heart", heart.astype(np.uint8))):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing(volume.geometry.spacing[::-1])
            image.SetOrigin(volume.geometry.origin)
            image.SetDirection(np.array(volume.geometry.axes[::-1]).T.flatten().tolist())
            files[name] = folder / f"{name}{suffix}"
            sitk.WriteImage(image, str(files[name]))
        self.grid = grid_of(sitk.ReadImage(str(files["ct"])), volume.geometry.shape)
        self.subject = tio.Subject(image=tio.ScalarImage(files["ct"]), heart=tio.LabelMap(files["heart"]))

    def run(self, network: torch.nn.Module, sizes: Patches) -> np.ndarray:
        """The mask on the CT's grid, bool (z, y, x).

        Leaves the crop's mean probability in `mean`, and in `doubtful` where on the CT's grid it is within
        1e-4 of one half.
        """
        crop, patch, step = (s[::-1] for s in (sizes.crop_shape, sizes.patch_shape, sizes.patch_step))
        shown = tio.Compose(
            [
                tio.Resample((0.7, 0.7, 2.5)),
                tio.CropOrPad(crop, mask_name="heart"),
                tio.Clamp(-135, 500),
                tio.ZNormalization(),
                tio.RescaleIntensity((0, 1)),
            ]
        )(self.subject)
        values, heart = shown.image.data[0], shown.heart.data[0]
        total, cover = np.zeros(crop), np.zeros(crop)
        self.patches = 0
        for x in range(0, crop[0] - patch[0], step[0]):
            for y in range(0, crop[1] - patch[1], step[1]):
                for z in range(0, crop[2] - patch[2], step[2]):
                    at = np.s_[x : x + patch[0], y : y + patch[1], z : z + patch[2]]
                    if heart[at].sum() > 0:
                        with torch.inference_mode():
                            total[at] += network(values[at][None, None]).sigmoid()[0, 0].numpy()
                        cover[at] += 1
                        self.patches += 1
        cover[cover == 0] = 1
        self.mean = total / cover
        for name, mask in (("found", self.mean > 0.5), ("doubtful", np.abs(self.mean - 0.5) < 1e-4)):
            label = torch.from_numpy(mask.astype(np.float32))[None]
            shown[name] = tio.LabelMap(tensor=label, affine=shown.image.affine)
        back = tio.Resample(self.subject.image)(
            shown.apply_inverse_transform(warn=False, image_interpolation="linear")
        )
        self.doubtful = back["doubtful"].numpy()[0].transpose(2, 1, 0) > 0
        return back["found"].numpy()[0].transpose(2, 1, 0) > 0


def firm(tensors: dict[str, torch.Tensor], oracle: Oracle, sizes: Patches, share: float) -> torch.nn.Module:
    """The oracle's network, whose last layer says calcium of about this share of the voxels that it sees, and
    firmly. Changes the tensors."""
    network: torch.nn.Module = oracle.published.Described(tensors)
    some = torch.rand(1, 1, *sizes.patch_shape[::-1], generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        spread = max(float(network(some).std()), 1.0)
    weight, bias = tensors["final_conv.weight"], tensors["final_conv.bias"]
    weight /= spread  # else wide ones say nothing but 0 and 1
    bias /= spread
    oracle.run(network, sizes)
    seen = oracle.mean[oracle.mean > 0]
    logits = np.log(seen / (1 - seen))
    scale = 4 / float(logits.std())
    weight *= scale
    bias.sub_(float(np.quantile(logits, 1 - share))).mul_(scale)
    return network


def ellipsoid(shape: Triple, centre: tuple[float, ...], radius: float) -> np.ndarray:
    """A heart of sorts; centre and radius in shares of the scan."""
    axes = np.ogrid[tuple(map(slice, shape))]
    return sum(((a / n - c) / radius) ** 2 for a, c, n in zip(axes, centre, shape, strict=True)) < 1


def turned(seed: int) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q


AXIAL = ((0, 0, 1), (0, 1, 0), (1, 0, 0))
MIDDLE = (0.45, 0.5, 0.55)
SCANS = {
    # shape (z, y, x), spacing (z, y, x), axes, centre of the heart
    "uneven": ((30, 46, 41), (3.0, 0.9, 1.1), AXIAL, MIDDLE),
    "slices every 1.25 mm": ((37, 41, 40), (1.25, 0.7, 0.7), AXIAL, MIDDLE),
    "slices every 5 mm": ((12, 38, 47), (5.0, 0.7, 0.6), AXIAL, MIDDLE),
    "feet first, prone": ((30, 35, 33), (1.3, 0.65, 0.73), ((0, 0, -1), (0, -1, 0), (1, 0, 0)), MIDDLE),
    "coronal": ((45, 18, 39), (0.9, 1.9, 0.7), ((0, 1, 0), (0, 0, -1), (1, 0, 0)), MIDDLE),
    "oblique": ((33, 37, 35), (1.1, 0.69, 0.83), turned(4), MIDDLE),
    "oblique, voxels halfway": ((33, 37, 35), (1.25, 1.2, 1.2), turned(4), MIDDLE),
    "oblique, slices every 5 mm": ((14, 40, 35), (5.0, 0.7, 0.7), turned(9), MIDDLE),
    "heart at the border": ((23, 31, 29), (1.7, 0.75, 0.81), AXIAL, (0.05, 0.95, 0.1)),
    "smaller than the crop": ((11, 17, 13), (2.0, 0.9, 0.8), AXIAL, MIDDLE),
}


def simulated_scan(name: str, larger: int = 1) -> tuple[Volume, np.ndarray]:
    """Smooth noise of the spread of a chest's soft tissue; `larger`: as many times as many voxels an axis."""
    shape, spacing, axes, centre = SCANS[name]
    z, y, x = (n * larger for n in shape)
    rows = [tuple(float(v) for v in row) for row in axes]
    geometry = Geometry(
        shape=(z, y, x), spacing=spacing, origin=(-131.7, 112.3, -204.9), axes=(rows[0], rows[1], rows[2])
    )
    noise = ndimage.gaussian_filter(np.random.default_rng(len(name)).normal(size=(z, y, x)), 1.2)
    hu = (noise / noise.std() * 250).round().astype(np.int16)
    return Volume(hu=hu, geometry=geometry), ellipsoid((z, y, x), centre, 0.25)


def larger_pieces(mask: np.ndarray) -> bool:
    """Whether anything is larger than the three pixels that never count."""
    pieces, _ = ndimage.label(mask, structure=np.pad(np.ones((1, 3, 3)), ((1, 1), (0, 0), (0, 0))))
    return bool((np.bincount(pieces.ravel())[1:] > 3).any())


def compare(
    volume: Volume,
    heart: np.ndarray,
    tensors: dict[str, torch.Tensor],
    oracle: Oracle,
    sizes: Patches,
    share: float = 0.01,
) -> None:
    """The mask is equal at 99.99 % of the voxels, and different only where the mean is within 1e-4 of one
    half; score and group of a mask are always equal.

    The CT has the grid that the oracle's file has.
    """
    expected = oracle.run(firm(tensors, oracle, sizes, share), sizes)
    volume = Volume(hu=volume.hu, geometry=oracle.grid)
    model = PublishedModel(build(tensors), device=torch.device("cpu"), patches=sizes)
    found = model.predict(volume, heart)
    assert found.patches_counted == oracle.patches >= found.patches_run > 0
    assert expected.any()
    assert share / 2 < (oracle.mean > 0.5).sum() / (oracle.mean > 0).sum() < 2 * share
    differ = found.mask != expected
    print(
        f"{differ.sum()} of {expected.sum()} differ, {oracle.doubtful.sum()} in doubt; "
        f"{found.patches_run} of {oracle.patches} patches run"
    )
    assert not (differ & ~oracle.doubtful).any()
    assert differ.sum() <= 1e-4 * expected.size

    published, spacing = oracle.published, oracle.grid.spacing
    for mask in (expected, found.mask):
        mapped = published.labelled_map(volume.hu, mask)
        for rule, counted in (("deepcac2", mask), ("deepcac2-mapped", mapped)):
            total = published.labelled_score(volume.hu, counted, spacing)
            ours = score(volume, mask, rule=rule)
            assert (ours.total, int(ours.risk_group)) == (total, published.group_of(total))
            assert rule == "deepcac2-mapped" or total > 0 or not larger_pieces(mask)


@pytest.mark.parametrize("name", SCANS)
def test_the_mask_is_that_of_torchio(name: str, published: ModuleType, tmp_path: Path) -> None:
    volume, heart = simulated_scan(name)
    oracle = Oracle(volume, heart, tmp_path, ".nrrd", published)
    compare(volume, heart, published.random_tensors((3, 5, 4), seed=3), oracle, SMALL, share=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz"])
@pytest.mark.parametrize("name", ["uneven", "feet first, prone", "oblique", "heart at the border"])
def test_whole_crops_are_those_of_torchio(
    name: str, suffix: str, published: ModuleType, tmp_path: Path
) -> None:
    volume, heart = simulated_scan(name, larger=4)
    oracle = Oracle(volume, heart, tmp_path, suffix, published)
    compare(volume, heart, published.random_tensors((4, 6, 8, 10, 12), 3), oracle, Patches())


def tilted(degrees: float) -> np.ndarray:
    """Axes (z, y, x) of a patient who lies askew: turned about all three."""
    a, b, c = np.radians([degrees, -degrees / 2, degrees / 3])
    x = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
    y = [[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]]
    z = [[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]]
    return (np.array(x) @ y @ z).T[::-1]


CHESTS = {
    # seed, spacing (z, y, x), axes (z, y, x), what of the heart's box is left at the end of each axis
    "uneven": (3, (1.7, 1.1, 1.35), AXIAL, (1.0, 1.0, 1.0)),
    "oblique": (4, (2.1, 1.13, 1.17), tilted(17), (1.0, 1.0, 1.0)),
    "oblique, voxels halfway": (4, (2.5, 1.2, 1.2), tilted(17), (1.0, 1.0, 1.0)),
    "feet first, prone, heart at the border": (
        5, (1.25, 1.3, 1.3), ((0, 0, -1), (0, -1, 0), (1, 0, 0)), (0.6, 0.7, 0.8)
    ),
}  # fmt: skip


def simulated_chest(name: str) -> tuple[Volume, np.ndarray]:
    """A simulated patient, drawn on a grid of another orientation, and the true heart."""
    seed, spacing, axes, left = CHESTS[name]
    z, y, x = (np.array(axis, dtype=float) for axis in axes)
    middle = np.array(heart_centroid(seed))
    shape = tuple(int(length / s) for length, s in zip((170, 200, 210), spacing, strict=True))
    steps = [s * axis for s, axis in zip(spacing, (z, y, x), strict=True)]
    origin = middle - sum(n / 2 * step for n, step in zip(shape, steps, strict=True))
    geometry = Geometry(
        shape=shape, spacing=spacing, origin=tuple(map(float, origin)),
        axes=(tuple(map(float, z)), tuple(map(float, y)), tuple(map(float, x))),
    )  # fmt: skip
    patient = simulate_patient(seed, geometry=geometry)
    found = [np.flatnonzero(patient.heart.any(axis=tuple({0, 1, 2} - {a}))) for a in range(3)]
    cut = tuple(
        slice(0, n if share == 1 else int(f[0] + share * (f[-1] + 1 - f[0])))
        for f, share, n in zip(found, left, shape, strict=True)
    )
    volume = Volume(hu=np.ascontiguousarray(patient.volume.hu[cut]), geometry=geometry.part(cut))
    return volume, np.ascontiguousarray(patient.heart[cut])


@pytest.mark.slow
@pytest.mark.parametrize("name", CHESTS)
def test_simulated_chests_are_those_of_torchio(name: str, published: ModuleType, tmp_path: Path) -> None:
    volume, heart = simulated_chest(name)
    assert heart.any()
    at_border = heart[-1].any(), heart[:, -1].any(), heart[:, :, -1].any()
    assert all(at_border) == ("border" in name)
    oracle = Oracle(volume, heart, tmp_path, ".nrrd", published)
    compare(volume, heart, published.random_tensors((4, 6, 8, 10, 12), 3), oracle, Patches())


def real_chest(folder: Path) -> tuple[Volume, np.ndarray]:
    (series,) = discover(folder, allow={"coarse-pixels"}).series
    volume = read_series(series).volume
    return volume, ellipsoid(volume.hu.shape, (0.4, 0.45, 0.55), 0.2)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz"])
@pytest.mark.parametrize("name", ["LIDC-IDRI-0306", "Lung_Dx-A0001-B", "CIP-64x64"])
def test_real_chests_are_those_of_torchio(
    name: str, suffix: str, published: ModuleType, tmp_path: Path, shared_data: Path
) -> None:
    volume, heart = real_chest(shared_data / "chest" / name)
    oracle = Oracle(volume, heart, tmp_path, suffix, published)
    compare(volume, heart, published.random_tensors((4, 6, 8, 10, 12), 3), oracle, Patches())


@pytest.mark.slow
def test_full_widths_are_those_of_torchio(published: ModuleType, tmp_path: Path, shared_data: Path) -> None:
    """The published widths, 90.3 M parameters. The heart is two opposite corners of one, so that few patches
    hold some: of one corner four, of the other none, since the last positions are never run. It takes 2.1 GB
    of memory and 50 s of a core."""
    volume, _ = real_chest(shared_data / "chest" / "LIDC-IDRI-0306")
    heart = np.zeros(volume.hu.shape, dtype=bool)
    for sign in (-1, 1):
        at = []
        offsets = ((47.5, 60.0), (69.3, 72.8), (64.4, 72.8))  # mm from its middle, z, y, x
        for n, spacing, (low, high) in zip(heart.shape, volume.geometry.spacing, offsets, strict=True):
            a, b = sorted(round(n / 2 + sign * mm / spacing) for mm in (low, high))
            at.append(slice(a, b))
        heart[tuple(at)] = True
    oracle = Oracle(volume, heart, tmp_path, ".nrrd", published)
    compare(volume, heart, published.random_tensors(PUBLISHED_WIDTHS, 3), oracle, Patches())
    assert oracle.patches == 4
