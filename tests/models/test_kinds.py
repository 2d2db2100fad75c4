"""Names of pieces: which artery, and what else; and that the mask hangs on none of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.labels import NOT_SURE
from deepcac2.imaging.masks import box_centre
from deepcac2.models.calcium.kinds import KINDS, name_pieces
from deepcac2.models.calcium.network import CalciumModel
from deepcac2.models.calcium.train import kinds_of
from deepcac2.models.calcium.unet import UNet
from deepcac2.simulation.truth import OTHERS

GRID = Geometry(shape=(20, 40, 40), spacing=(2.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0))
HALF = GRID.halved()


def _shares(**boxes: tuple[slice, slice, slice]) -> npt.NDArray[np.float32]:
    """Probabilities on the half grid: 1 in the boxes of the kinds, given in its voxels, else nothing."""
    kinds = np.zeros((len(KINDS), *HALF.shape), dtype=np.float32)
    kinds[0] = 1
    for name, box in boxes.items():
        kinds[(slice(None), *box)] = 0
        kinds[(KINDS.index(name.replace("_", " ")), *box)] = 1
    return kinds


def _mask(*boxes: tuple[slice, slice, slice]) -> npt.NDArray[np.bool_]:
    mask = np.zeros(GRID.shape, dtype=bool)
    for box in boxes:
        mask[box] = True
    return mask


NOTHING = _mask()


def test_a_lesion_is_divided_where_the_artery_changes() -> None:
    kinds = _shares(LM=np.s_[0:10, 0:20, 0:10], LAD=np.s_[0:10, 0:20, 10:20])
    found = _mask(np.s_[4:8, 10:14, 12:30])
    arteries, others = name_pieces(kinds, HALF, GRID, found=found, bright=found)
    assert set(np.unique(arteries.array[4:8, 10:14, 12:19])) == {1}
    assert set(np.unique(arteries.array[4:8, 10:14, 21:30])) == {2}
    assert (arteries.mask == found).all()
    assert not others.mask.any()


@pytest.mark.parametrize(("first", "values"), [(13, {2}), (12, {1, 2})])
def test_a_small_part_joins_the_rest_of_its_lesion(first: int, values: set[int]) -> None:
    """Of the LM are 8 mm³, and 16 mm³, which is enough."""
    kinds = _shares(LM=np.s_[0:10, 0:20, 0:7], LAD=np.s_[0:10, 0:20, 7:20])
    found = _mask(np.s_[4:6, 10:12, first:30])
    arteries, _ = name_pieces(kinds, HALF, GRID, found=found, bright=found)
    assert set(np.unique(arteries.array[found])) == values


def test_an_artery_that_is_not_sure_says_so() -> None:
    kinds = _shares()
    kinds[[1, 2, 3, 4]] = 0.25
    found = _mask(np.s_[4:6, 10:14, 10:14])
    arteries, _ = name_pieces(kinds, HALF, GRID, found=found, bright=found)
    assert set(np.unique(arteries.array[found])) == {NOT_SURE.value}


def test_the_edge_of_a_lesion_is_named_as_the_nearest_bright_voxel() -> None:
    """Nothing is read from the namer at its own place, where it was not asked."""
    kinds = _shares(LM=np.s_[0:10, 0:20, 0:10], LAD=np.s_[0:10, 0:20, 10:20])
    found, bright = _mask(np.s_[4:8, 10:14, 8:32]), _mask(np.s_[4:8, 10:14, 12:30])
    kinds[:, :, :, 15:] = kinds[:, :, :, :6] = 0
    arteries, others = name_pieces(kinds, HALF, GRID, found=found, bright=bright)
    assert set(np.unique(arteries.array[4:8, 10:14, 8:19])) == {1}
    assert set(np.unique(arteries.array[4:8, 10:14, 21:32])) == {2}
    assert (arteries.mask == found).all()
    assert not others.mask.any()
    arteries, _ = name_pieces(kinds, HALF, GRID, found=found, bright=NOTHING)
    assert (arteries.where(NOT_SURE.name) == found).all()


def test_the_namer_is_asked_where_it_matters(model: CalciumModel) -> None:
    """Everywhere or at a few voxels: those have the same answer."""
    x = torch.rand((2, 5, 8, 16, 16), generator=torch.Generator().manual_seed(4))
    asked = np.random.default_rng(4).random((2, 4, 8, 8)) < 0.2
    with torch.inference_mode():
        (mask, all_of_it), (same, some) = model.network(x), model.network(x, asked)
    assert (mask == same).all()
    where = torch.from_numpy(asked)[:, None].expand_as(all_of_it)
    torch.testing.assert_close(some[where], all_of_it[where])
    assert (some[~where] == 0).all()


def test_what_is_not_counted_is_named_or_left() -> None:
    valve, bone, thread, speck = (
        np.s_[4:6, 4:8, 4:8],
        np.s_[4:6, 20:24, 4:8],
        np.s_[12:14, 4:8, 20:24],
        np.s_[12, 30, 30],
    )
    kinds = _shares(
        aortic_valve=np.s_[2:3, 2:4, 2:4], RCA=np.s_[6:7, 2:4, 10:12], mitral_annulus=np.s_[6:7, 14:16, 14:16]
    )
    bright = _mask(valve, bone, thread, speck)
    arteries, others = name_pieces(kinds, HALF, GRID, found=NOTHING, bright=bright)
    assert not arteries.mask.any()
    assert (others.where("aortic valve") == _mask(valve)).all()
    assert (others.where("perhaps coronary") == _mask(thread)).all()
    assert others.mask.sum() == 2 * 2 * 4 * 4  # neither bone nor speck


def test_what_lies_beyond_the_crop_has_no_name() -> None:
    inside, beyond = np.s_[4:6, 4:8, 4:8], np.s_[4:6, 4:8, 32:38]
    crop = replace(HALF, shape=(10, 20, 14))
    kinds = np.zeros((len(KINDS), *crop.shape), dtype=np.float32)
    kinds[KINDS.index("aorta")] = 1
    _, others = name_pieces(kinds, crop, GRID, found=NOTHING, bright=_mask(inside, beyond))
    assert (others.where("aorta") == _mask(inside)).all()


def test_kinds_are_those_of_the_truth() -> None:
    """The namer's numbers follow the values of arteries and of the simulator's other kinds."""
    assert [KINDS[4 + label.value] for label in OTHERS[:4]] == [
        "aorta",
        "aortic valve",
        "mitral annulus",
        "pericardium",
    ]
    label = torch.zeros((1, 1, 2, 4, 12), dtype=torch.uint8)
    for k, value in enumerate((0, 2, 14, 22, 1, 28)):
        label[0, 0, 0, 0, 2 * k] = value
    label[0, 0, 1, 1, 4] = 11  # of two arteries in one cell one is taken
    label[0, 0, 1, 1, 8] = 12  # beside calcium of no known artery
    found = kinds_of(label)[0, 0, 0].tolist()
    assert [KINDS[k] if k >= 0 else None for k in found] == [
        "none",
        "none",
        "RCA",
        "aortic valve",
        "LAD",
        "other",
    ]
    label[0, 0, 1, 1, 8] = 0
    assert kinds_of(label)[0, 0, 0, 4] == -1


@pytest.fixture(scope="module")
def model() -> CalciumModel:
    torch.manual_seed(5)
    network = UNet(
        channels=[4, 8], strides=[2], num_res_units=1, norm="instance", placed=True, kinds=list(KINDS)
    )
    return CalciumModel(network, device=torch.device("cpu"))


def _scan() -> tuple[Volume, npt.NDArray[np.bool_]]:
    rng = np.random.default_rng(3)
    geometry = Geometry(shape=(40, 120, 120), spacing=(2.5, 1.0, 1.0), origin=(-60.0, -60.0, 0.0))
    hu = rng.normal(0, 60, geometry.shape)
    hu[10:30:4, 30:90:9, 30:90:9] += 500
    heart = np.zeros(geometry.shape, dtype=bool)
    heart[8:32, 25:95, 25:95] = True
    return Volume(hu=hu.astype(np.int16), geometry=geometry), heart


def test_every_found_voxel_has_an_artery_and_no_other_name(model: CalciumModel) -> None:
    volume, heart = _scan()
    found = model.predict(volume, box_centre(heart, volume.geometry), heart=heart, region=heart)
    arteries, others = found.names
    assert 0 < found.mask.sum() < heart.sum()
    assert (arteries.mask == found.mask).all()
    assert not (others.mask & found.mask).any()
    assert not (others.mask & (volume.hu < 130)).any()


def test_names_turn_with_the_scan(model: CalciumModel) -> None:
    """The same chest stored feet first gives the same names, turned."""
    volume, heart = _scan()
    g = volume.geometry
    last = g.to_lps([g.shape[0] - 1, 0, 0])
    axes = (tuple(-a for a in g.axes[0]), *g.axes[1:])
    turned = Volume(
        hu=np.ascontiguousarray(volume.hu[::-1]),
        geometry=replace(g, origin=tuple(float(v) for v in last), axes=axes),  # type: ignore[arg-type]
    )
    upside = np.ascontiguousarray(heart[::-1])
    centre = box_centre(heart, g)
    first = model.predict(volume, centre, heart=heart, region=heart)
    second = model.predict(turned, centre, heart=upside, region=upside)
    assert (second.mask[::-1] == first.mask).all()
    for a, b in zip(first.names, second.names, strict=True):
        assert (b.array[::-1] == a.array).all()


def test_a_dense_run_gives_the_same_mask(model: CalciumModel) -> None:
    """Patches are skipped exactly with the channels of the place, too."""
    volume, heart = _scan()
    centre = box_centre(heart, volume.geometry)
    sparse = model.predict(volume, centre, heart=heart, region=heart)
    dense = model.predict(volume, centre, heart=heart, region=heart, lowest_hu=None)
    bright = volume.hu >= 130
    assert (sparse.mask & bright == dense.mask & bright).all()
    assert not (dense.names[1].mask & ~bright).any()


def test_the_heart_must_be_given(model: CalciumModel) -> None:
    volume, heart = _scan()
    with pytest.raises(ValueError, match="give the heart's mask"):
        model.predict(volume, box_centre(heart, volume.geometry))
