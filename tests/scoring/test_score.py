"""The scorer against an independent slow implementation, hand-computed cases and its promises."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from deepcac2.errors import InputError, MaskMismatch
from deepcac2.imaging import Geometry, Volume
from deepcac2.scoring import RULES, CalciumScore, RiskGroup, Rule, risk_group, score
from deepcac2.scoring.rules import find_rule

THICKNESS = 2.0


def make_volume(hu: np.ndarray, spacing: tuple[float, float, float] = (3.0, 1.0, 1.0)) -> Volume:
    hu = np.asarray(hu, dtype=np.int16)
    return Volume(hu=hu, geometry=Geometry(shape=hu.shape, spacing=spacing, origin=(0.0, 0.0, 0.0)))


# An independent implementation: plain Python, dictionaries and a flood fill, one function per published
# rule, written from the rules' descriptions and sharing nothing with the scorer.

FACES = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
ALL_26 = [d for d in itertools.product((-1, 0, 1), repeat=3) if d != (0, 0, 0)]
IN_SLICE_8 = [d for d in ALL_26 if d[0] == 0]


def flood(voxels: dict, steps: list) -> list[dict]:
    groups, left = [], dict(voxels)
    while left:
        seed = next(iter(left))
        group, stack = {seed: left.pop(seed)}, [seed]
        while stack:
            z, y, x = stack.pop()
            for dz, dy, dx in steps:
                at = (z + dz, y + dy, x + dx)
                if at in left:
                    group[at] = left.pop(at)
                    stack.append(at)
        groups.append(group)
    return groups


def slow_weight(hu: int) -> int:
    return 0 if hu < 130 else 1 if hu < 200 else 2 if hu < 300 else 3 if hu < 400 else 4


def slow_scores(hu: np.ndarray, mask: np.ndarray, spacing: tuple) -> dict[str, tuple[float, int]]:
    """(score, counted voxels) by rule name."""
    inside = {tuple(i): int(hu[tuple(i)]) for i in np.argwhere(mask).tolist()}
    dense = {i: v for i, v in inside.items() if v >= 130}
    dz, dy, dx = spacing
    result = {}

    total, n = 0.0, 0
    for lesion in flood(dense, IN_SLICE_8):
        if len(lesion) * dy * dx >= 1.0 - 1e-9:
            total += len(lesion) * dy * dx * slow_weight(max(lesion.values()))
            n += len(lesion)
    result["classic"] = total, n
    result["agatston"] = total * dz / 3.0, n

    total, n = 0.0, 0
    for lesion in flood(inside, IN_SLICE_8):
        if len(lesion) > 3 and max(lesion.values()) >= 130:
            total += len(lesion) * (dz * dy * dx / 3.0) * slow_weight(max(lesion.values()))
            n += len(lesion)
    result["deepcac-v1"] = total, n

    total, n = 0.0, 0
    for lesion in flood(inside, FACES):
        if len(lesion) >= 2 and max(lesion.values()) >= 130:
            total += round(len(lesion) * dy * dx * THICKNESS / 3.0 * slow_weight(max(lesion.values())))
            n += len(lesion)
    result["ai-cac"] = total, n

    total, n = 0.0, 0
    for lesion in flood(dense, ALL_26):
        if len(lesion) * dz * dy * dx >= 1.5 - 1e-9:
            for piece in flood(lesion, IN_SLICE_8):
                total += len(piece) * dy * dx * dz / 3.0 * slow_weight(max(piece.values()))
            n += len(lesion)
    result["van-velzen"] = total, n

    result["deepcac2"] = slow_deepcac2(hu, mask, spacing)
    result["deepcac2-mapped"] = slow_deepcac2(hu, slow_mapped(hu, mask), spacing)
    return result


def slow_deepcac2(hu: np.ndarray, mask: np.ndarray, spacing: tuple) -> tuple[float, int]:
    """The published score, slice by slice and piece by piece, on (x, y, z) arrays and with scipy."""
    sz, sy, sx = spacing
    unit = round(sx * sy * sz / 3, 3)
    total, n = 0.0, 0
    hu, mask = hu.transpose(), mask.transpose()
    for z in range(mask.shape[2]):
        pieces, count = ndimage.label(mask[:, :, z], structure=np.ones((3, 3)))
        for i in range(1, count + 1):
            inside = pieces == i
            pixels = int(inside.sum())
            if pixels <= 3:
                continue
            highest = int(hu[:, :, z][inside].max())
            weight = 1 if highest < 200 else 2 if highest < 300 else 3 if highest < 400 else 4
            total += round(pixels * unit * weight, 3)
            n += pixels
    return round(total), n


def slow_mapped(hu: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Every piece of a slice from 130 HU on that the mask overlaps anywhere, whole."""
    mapped = np.zeros(mask.shape, bool)
    for z in range(len(mask)):
        pieces, count = ndimage.label(hu[z] >= 130, structure=np.ones((3, 3)))
        for i in range(1, count + 1):
            if (mask[z] & (pieces == i)).any():
                mapped[z] |= pieces == i
    return mapped


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, (7, 14, 14)))
    hu = rng.normal(170, 120, shape).round().astype(np.int16)
    mask = rng.random(shape) < rng.choice([0.05, 0.2, 0.4, 0.7])
    spacing = tuple(float(s) for s in rng.choice([0.35, 0.5, 0.7, 1.0, 1.3, 2.5, 3.0], 3))
    return hu, mask, spacing


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(40))
def test_agrees_with_the_slow_implementation(seed: int, rule: str) -> None:
    hu, mask, spacing = random_case(seed)
    result = score(make_volume(hu, spacing), mask, rule=rule, slice_thickness=THICKNESS)
    total, n = slow_scores(hu, mask, spacing)[rule]
    assert result.total == pytest.approx(total, rel=1e-9, abs=1e-9)
    assert result.n_counted == n
    assert result.volume_mm3 == pytest.approx(n * math.prod(spacing))


@pytest.mark.parametrize("connectivity", [4, 8, 6, 18, 26])
@pytest.mark.parametrize("seed", range(5))
def test_connectivity_is_the_one_drawn(seed: int, connectivity: int) -> None:
    hu, mask, spacing = random_case(100 + seed)
    steps = {
        4: [d for d in FACES if d[0] == 0],
        8: IN_SLICE_8,
        6: FACES,
        18: [d for d in ALL_26 if 0 in d],
        26: ALL_26,
    }
    rule = Rule(
        name="test", threshold=None, connectivity=connectivity, min_voxels=5, weight_per="lesion",
        thickness="none",
    )  # fmt: skip
    voxels = {tuple(i): int(hu[tuple(i)]) for i in np.argwhere(mask).tolist()}
    expected = sum(
        len(g) * spacing[1] * spacing[2] * slow_weight(max(g.values()))
        for g in flood(voxels, steps[connectivity])
        if len(g) >= 5
    )
    assert score(make_volume(hu, spacing), mask, rule=rule).total == pytest.approx(expected)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(5))
def test_lesions_add_up(seed: int, rule: str) -> None:
    hu, mask, spacing = random_case(200 + seed)
    volume = make_volume(hu, spacing)
    result = score(volume, mask, rule=rule, slice_thickness=THICKNESS)
    added = sum(lesion.score for lesion in result.lesions)
    assert (round(added, 6) if not RULES[rule].round_total else round(added)) == pytest.approx(result.total)
    assert sum(lesion.n_voxels for lesion in result.lesions) == result.n_counted
    assert [lesion.index for lesion in result.lesions] == list(range(1, len(result.lesions) + 1))
    assert sorted((lesion.score for lesion in result.lesions), reverse=True) == [
        lesion.score for lesion in result.lesions
    ]
    for lesion in result.lesions:
        assert sum(part.n_voxels for part in lesion.parts) == lesion.n_voxels
        assert {part.weight for part in lesion.parts} == set(lesion.weights)
        assert lesion.slice_indices == (lesion.parts[0].slice_index, lesion.parts[-1].slice_index)
        assert lesion.area_mm2 * spacing[0] == pytest.approx(lesion.volume_mm3)
        np.testing.assert_allclose(volume.geometry.to_lps(lesion.centroid_index), lesion.centroid_lps)
        if not RULES[rule].round_lesions:
            assert sum(part.score for part in lesion.parts) == pytest.approx(lesion.score)


def test_by_hand() -> None:
    """Two slices of 2.5 mm, pixels of 0.5 mm²: the arithmetic is in the comments."""
    hu = np.zeros((3, 6, 8))
    hu[0, 1:3, 1:3] = [[250, 140], [140, 150]]  # 4 px = 2 mm², weight 2
    hu[1, 1, 1:4] = [199, 130, 129]  # 2 px = 1 mm², weight 1; 129 does not count
    hu[1, 4, 0] = 900  # 1 px = 0.5 mm², touches nothing: too small
    hu[2, 3:6, 5:8] = 400  # 9 px = 4.5 mm², weight 4
    volume = make_volume(hu, (2.5, 1.0, 0.5))
    result = score(volume, hu > 0, calibration_factor=0.001)
    assert result.total == pytest.approx((2 * 2 + 1 * 1 + 4.5 * 4) * 2.5 / 3)
    assert score(volume, hu > 0, rule="classic").total == pytest.approx(23.0)
    assert result.n_counted == 15
    assert result.volume_mm3 == pytest.approx(15 * 1.25)
    assert result.mass_mg == pytest.approx((250 + 140 + 140 + 150 + 199 + 130 + 9 * 400) * 1.25 * 0.001)
    assert score(volume, hu > 0).mass_mg is None

    big, small = result.lesions  # the first two slices touch: one lesion of the table
    assert (big.n_voxels, big.max_hu, big.weights, big.slice_indices) == (9, 400, (4,), (2, 2))
    assert big.centroid_index == (2.0, 4.0, 6.0)
    assert (small.n_voxels, small.max_hu, small.weights, small.slice_indices) == (6, 250, (1, 2), (0, 1))
    assert [(p.slice_index, p.max_hu, p.weight, p.area_mm2) for p in small.parts] == [
        (0, 250, 2, 2.0),
        (1, 199, 1, 1.0),
    ]

    # deepcac-v1: every voxel of the mask, more than 3 pixels: 4 px w 2, 9 px w 4
    assert score(volume, hu > 0, rule="deepcac-v1").total == pytest.approx((4 * 2 + 9 * 4) * 1.25 / 3)
    # ai-cac, SliceThickness 3: voxels 4 + 3 face-connected through slices, max 250: round(7 · 0.5 · 2) = 7;
    # 9 voxels: round(9 · 0.5 · 4) = 18; the single voxel has too few
    assert score(volume, hu > 0, rule="ai-cac", slice_thickness=3.0).total == 25
    # van-velzen: lesions 6 voxels of 7.5 mm³ and 9 voxels; 900 HU alone is 1.25 mm³
    assert score(volume, hu > 0, rule="van-velzen").total == pytest.approx((2 * 2 + 1 + 18) * 2.5 / 3)


@pytest.mark.parametrize("towards", [1.0, -1.0])
def test_slices_are_counted_from_the_lowest(towards: float) -> None:
    """By where they lie in the patient, whichever way the array runs."""
    hu = np.zeros((5, 4, 4))
    hu[1:3] = 400
    axes = ((0.0, 0.0, towards), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    geometry = replace(make_volume(hu, (2.5, 1.0, 1.0)).geometry, axes=axes)
    volume = Volume(hu=hu.astype(np.int16), geometry=geometry)
    heights = [float(geometry.to_lps((z, 0, 0))[2]) for z in range(5)]
    numbers = [1 + sum(other < height for other in heights) for height in heights]
    (lesion,) = score(volume, hu > 0).lesions
    assert lesion.slice_indices == (1, 2)
    assert lesion.slice_numbers == tuple(sorted((numbers[1], numbers[2])))
    assert [geometry.slice_number(z) for z in range(5)] == numbers


@pytest.mark.parametrize(
    ("hu", "weight"),
    [(130, 1), (199, 1), (200, 2), (299, 2), (300, 3), (399, 3), (400, 4), (32767, 4)],
)
def test_weight_limits(hu: int, weight: int) -> None:
    assert score(make_volume(np.full((1, 1, 1), hu)), np.ones((1, 1, 1), bool)).total == weight


@pytest.mark.parametrize("rule", [name for name in RULES if name != "deepcac2"])
@pytest.mark.parametrize("hu", [129, 0, -32768])
def test_nothing_below_130_ever_counts(hu: int, rule: str) -> None:
    volume = make_volume(np.full((2, 3, 3), hu))
    result = score(volume, np.ones((2, 3, 3), bool), rule=rule, slice_thickness=3.0, calibration_factor=1.0)
    assert (result.total, result.n_counted, result.volume_mm3, result.mass_mg) == (0, 0, 0, 0)
    assert result.lesions == ()


# --- the published DeepCAC2, with every rounding ------------------------------------------------------------


def published_case(seed: int) -> tuple[Volume, np.ndarray, tuple[float, ...]]:
    """With few pieces halves before the last rounding are common: 0.5 mm³ and the like."""
    rng = np.random.default_rng(7000 + seed)
    shape = (int(rng.integers(1, 9)), int(rng.integers(4, 24)), int(rng.integers(4, 24)))
    hu = rng.normal(150, 130, shape).round().astype(np.int16)
    mask = ndimage.gaussian_filter(rng.normal(size=shape), (0, 1, 1)) > rng.uniform(0, 0.5)
    spacing = tuple(float(s) for s in rng.choice([0.5, 0.625, 0.703125, 0.75, 1.0, 1.5, 2.5, 3.0], 3))
    return make_volume(hu, spacing), mask, spacing


def test_the_table_of_the_documentation_is_true() -> None:
    """Of 200 random masks, how many scores of each rule are the published ones, and how many groups."""
    found = {rule: [0, 0, 0, 0] for rule in RULES}
    for seed in range(200):
        volume, mask, spacing = published_case(seed)
        plain = slow_deepcac2(volume.hu, mask, spacing)[0]
        mapped = slow_deepcac2(volume.hu, slow_mapped(volume.hu, mask), spacing)[0]
        for rule, counts in found.items():
            ours = score(volume, mask, rule=rule, slice_thickness=spacing[0])
            for i, total in enumerate((plain, mapped)):
                group = 0 if total == 0 else 1 if total <= 100 else 2 if total <= 300 else 3
                counts[2 * i] += ours.total == total
                counts[2 * i + 1] += ours.risk_group == group
    assert found["deepcac2"][:2] == found["deepcac2-mapped"][2:] == [200, 200]
    page = (Path(__file__).parents[2] / "docs" / "scoring.md").read_text(encoding="utf-8")
    for rule, counts in found.items():
        assert f"| `{rule}` | {' | '.join(map(str, counts))} |" in page


@pytest.mark.parametrize("seed", range(200))
def test_the_published_score_is_met_to_the_last_digit(seed: int) -> None:
    volume, mask, spacing = published_case(seed)
    hu = volume.hu
    for rule, counted in (("deepcac2", mask), ("deepcac2-mapped", slow_mapped(hu, mask))):
        result = score(volume, mask, rule=rule)
        assert (result.total, result.n_counted) == slow_deepcac2(hu, counted, spacing)
        group = 0 if result.total == 0 else 1 if result.total <= 100 else 2 if result.total <= 300 else 3
        assert result.risk_group == group


@pytest.mark.parametrize(
    ("pixels", "spacing", "total", "group"),
    [
        (4, (3.0, 0.3, 0.3), 0, 0),  # 4 × 0.09 = 0.36: some calcium, and no risk
        (4, (3.0, 0.3536, 0.3536), 0, 0),  # 4 × 0.125 = 0.5: halves go to the even number
        (12, (3.0, 0.3536, 0.3536), 2, 1),  # 1.5
        (20, (3.0, 0.3536, 0.3536), 2, 1),  # 2.5
        (4, (1.0, 0.01, 0.01), 0, 0),  # one pixel rounds to nothing
        (3, (3.0, 3.0, 3.0), 0, 0),  # too few pixels
        (251, (3.0, 0.2, 2.0), 100, 1),  # 100.4
        (252, (3.0, 0.2, 2.0), 101, 2),  # 100.8
        (751, (3.0, 0.2, 2.0), 300, 2),  # 300.4
        (752, (3.0, 0.2, 2.0), 301, 3),
    ],
)
def test_the_group_is_that_of_the_whole_number(
    pixels: int, spacing: tuple[float, float, float], total: int, group: int
) -> None:
    """One piece of 100 HU: below 130 it weighs 1, too."""
    volume = make_volume(np.full((1, 1, 800), 100), spacing)
    mask = np.zeros((1, 1, 800), bool)
    mask[..., :pixels] = True
    result = score(volume, mask, rule="deepcac2")
    assert (result.total, result.risk_group) == (total, group)
    assert score(volume, mask, rule="deepcac2-mapped").n_counted == 0


@pytest.mark.parametrize(
    ("pixel_mm2", "columns", "total"),
    [
        (0.1, [(12, 20), (14, 40), (9, 0)], 3),  # 3.5 on paper; added from the top down it would give 4
        (0.14, [(33, 0), (26, 0), (16, 0)], 10),  # 10.5; without rounding each piece it would give 11
    ],
)
def test_halves_hang_on_the_order_and_on_the_rounding_of_pieces(
    pixel_mm2: float, columns: list[tuple[int, int]], total: int
) -> None:
    """Pieces of one column of pixels each, from left to right: (pixels, first row)."""
    mask = np.zeros((1, 60, 2 * len(columns)), bool)
    for i, (pixels, first) in enumerate(columns):
        mask[0, first : first + pixels, 2 * i] = True
    hu = np.full(mask.shape, 150)
    spacing = (3.0, pixel_mm2, 1.0)
    assert slow_deepcac2(hu, mask, spacing)[0] == total
    assert score(make_volume(hu, spacing), mask, rule="deepcac2").total == total


def test_mapped_pieces_are_taken_whole_and_only_in_their_slice() -> None:
    hu = np.zeros((2, 6, 8))
    hu[:, 1:4, 1:7] = 150
    hu[0, 3, 6] = 310  # outside of the mask, in the same piece
    hu[0, 5, 0:5] = 400  # another piece, which the mask does not reach
    mask = np.zeros(hu.shape, bool)
    mask[0, 0:2, 0:2] = True  # one pixel of the piece, and three beside it
    result = score(make_volume(hu), mask, rule="deepcac2-mapped")
    assert (result.total, result.n_counted) == (18 * 3, 18)
    assert result.counted[0, 1:4, 1:7].all()
    assert score(make_volume(hu), mask, rule="deepcac2").total == 4
    assert RULES["deepcac2-mapped"].counts_from == 130
    assert RULES["deepcac2"].counts_below(-2000)
    assert not RULES["deepcac2-mapped"].counts_below(130)
    with pytest.raises(InputError, match="whole_from"):
        Rule(name="x", whole_from=130)
    said = result.parameters
    assert Rule.from_parameters(said) == RULES["deepcac2-mapped"]
    assert (said["whole_from"], said["unit_digits"], said["round_total"]) == (130, 3, True)
    before = {
        k: v for k, v in RULES["agatston"].parameters().items() if not k.endswith(("_digits", "_total"))
    }
    assert Rule.from_parameters(before) == RULES["agatston"]  # as reports had them until now


def test_four_half_millimetre_pixels_are_one_square_millimetre() -> None:
    mask = np.zeros((1, 3, 3), bool)
    mask[0, :2, :2] = True
    for spacing in ((3.0, 0.5, 0.5), (3.0, 0.1 + 0.2, 1 / (0.3 * 4))):
        assert score(make_volume(np.full((1, 3, 3), 150), spacing), mask).n_counted == 4
    assert score(make_volume(np.full((1, 3, 3), 150), (3.0, 0.499, 0.5)), mask).n_counted == 0


@pytest.mark.parametrize("rule", RULES)
def test_empty_masks_and_empty_arrays(rule: str) -> None:
    for shape in ((4, 5, 6), (1, 1, 1), (0, 5, 6)):
        result = score(
            make_volume(np.full(shape, 500)), np.zeros(shape, bool), rule=rule, slice_thickness=3.0
        )
        assert result.total == 0
        assert result.risk_group is RiskGroup.VERY_LOW
        assert result.lesions == ()
        json.dumps(result.to_dict())


@pytest.mark.parametrize("rule", RULES)
def test_lesions_at_opposite_borders_stay_apart(rule: str) -> None:
    mask = np.zeros((3, 4, 4), bool)
    mask[:, :, 0] = mask[:, :, -1] = True
    hu = np.where(mask, 150, 0)
    hu[1, 1, -1] = 450
    result = score(make_volume(hu), mask, rule=rule, slice_thickness=3.0)
    assert len(result.lesions) == 2
    assert [lesion.n_voxels for lesion in result.lesions] == [12, 12]


@pytest.mark.parametrize("rule", RULES)
def test_does_not_depend_on_where_the_lesion_lies_or_the_memory_order(rule: str) -> None:
    hu, mask, spacing = random_case(7)
    options = {"rule": rule, "slice_thickness": THICKNESS}
    plain = score(make_volume(hu, spacing), mask, **options)
    big_hu, big_mask = np.zeros((20, 40, 40), np.int16), np.zeros((20, 40, 40), bool)
    place = tuple(slice(5, 5 + n) for n in hu.shape)
    big_hu[place], big_mask[place] = hu, mask
    assert score(make_volume(big_hu, spacing), big_mask, **options).total == pytest.approx(plain.total)
    fortran = score(make_volume(np.asfortranarray(hu), spacing), np.asfortranarray(mask), **options)
    assert fortran == plain
    mirrored = score(make_volume(hu[::-1, :, ::-1], spacing), mask[::-1, :, ::-1], **options)
    assert mirrored.total == pytest.approx(plain.total)


@pytest.mark.parametrize("rule", RULES)
def test_inputs_are_left_alone(rule: str) -> None:
    hu, mask, spacing = random_case(3)
    before = hu.copy(), mask.copy()
    score(make_volume(hu, spacing), mask, rule=rule, slice_thickness=THICKNESS)
    np.testing.assert_array_equal(hu, before[0])
    np.testing.assert_array_equal(mask, before[1])


def test_single_slice_uses_the_increment_it_is_given() -> None:
    volume = make_volume(np.full((1, 2, 2), 150), (1.5, 1.0, 1.0))
    assert score(volume, np.ones((1, 2, 2), bool)).total == pytest.approx(4 * 1.5 / 3)


def test_slice_thickness_matters_only_where_the_rule_says_so() -> None:
    hu, mask, spacing = random_case(11)
    volume = make_volume(hu, spacing)
    for rule in RULES.values():
        if rule.thickness == "slice-thickness":
            with pytest.raises(InputError, match="--slice-thickness"):
                score(volume, mask, rule=rule)
        else:
            assert (
                score(volume, mask, rule=rule).total
                == score(volume, mask, rule=rule, slice_thickness=9.0).total
            )


def test_refused_arguments() -> None:
    volume = make_volume(np.zeros((2, 3, 4)))
    mask = np.zeros((2, 3, 4), bool)
    with pytest.raises(MaskMismatch, match=r"\(2, 4, 3\)"):
        score(volume, mask.transpose(0, 2, 1))
    with pytest.raises(InputError, match="boolean"):
        score(volume, mask.astype(np.uint8))
    with pytest.raises(InputError, match="Perhaps you meant 'agatston'"):
        score(volume, mask, rule="agaston")
    with pytest.raises(InputError, match="Valid are: agatston, agatston-kvp, ai-cac, classic"):
        score(volume, mask, rule="?")
    for value in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="slice thickness"):
            score(volume, mask, slice_thickness=value)
        with pytest.raises(InputError, match="calibration factor"):
            score(volume, mask, calibration_factor=value)
    for wrong in ({"connectivity": 5}, {"weight_per": "pixel"}, {"thickness": "x"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Rule(name="x", **wrong)
    with pytest.raises(InputError, match="min_area_mm2"):
        Rule(name="x", connectivity=26, min_area_mm2=1.0)


def test_own_rules_are_variants_of_named_ones() -> None:
    hu = np.full((1, 4, 4), 150)
    stricter = dataclasses.replace(RULES["agatston"], name="at-160", threshold=160)
    result = score(make_volume(hu), np.ones((1, 4, 4), bool), rule=stricter)
    assert result.rule == "at-160"
    assert result.total == 0


KILOVOLT_80 = ((177, 1), (271, 2), (408, 3), (544, 4))
"""Gräni et al. 2018, 80 kV."""


@pytest.mark.parametrize(
    ("hu", "weight"), [(176, 0), (177, 1), (270, 1), (271, 2), (407, 2), (408, 3), (543, 3), (544, 4)]
)
def test_a_rule_is_weighted_by_its_own_table(hu: int, weight: int) -> None:
    rule = Rule(name="at-80-kv", threshold=177, weights=KILOVOLT_80)
    result = score(make_volume(np.full((1, 1, 1), hu)), np.ones((1, 1, 1), bool), rule=rule)
    assert result.total == weight
    assert [part.weight for lesion in result.lesions for part in lesion.parts] == ([weight] if weight else [])
    assert result.parameters["weights"] == [list(pair) for pair in KILOVOLT_80]


BY_VOLTAGE = {
    70: (207, 318, 477, 636),
    80: (177, 271, 408, 544),
    100: (145, 222, 334, 446),
    120: (130, 200, 300, 400),
    135: (119, 183, 274, 364),
}
"""Lowest HU of the weights 1 to 4, by kV: Gräni et al. 2018, typed again."""


@pytest.mark.parametrize(("kvp", "limits"), BY_VOLTAGE.items())
def test_a_rule_by_voltage_has_the_threshold_and_weights_of_the_scans(
    kvp: int, limits: tuple[int, ...]
) -> None:
    def total(hu: int, voltage: float = kvp) -> float:
        volume = make_volume(np.full((1, 1, 1), hu))
        return score(volume, np.ones((1, 1, 1), bool), rule="agatston-kvp", kvp=voltage).total

    for weight, limit in enumerate(limits, start=1):
        assert (total(limit - 1), total(limit)) == (weight - 1, weight)
    assert total(limits[0], kvp + 0.4) == 1
    result = score(
        make_volume(np.full((1, 2, 2), 700)), np.ones((1, 2, 2), bool), rule="agatston-kvp", kvp=kvp
    )
    said = json.loads(json.dumps(result.parameters))
    assert (result.rule, said["threshold"], said["kvp"]) == ("agatston-kvp", limits[0], kvp)
    assert said["weights"] == [[limit, weight] for weight, limit in enumerate(limits, start=1)]
    # who scores again by what a report says needs no voltage
    again = Rule.from_parameters(said)
    assert score(make_volume(np.full((1, 1, 1), limits[0])), np.ones((1, 1, 1), bool), rule=again).total == 1


@pytest.mark.parametrize("seed", range(5))
def test_at_120_kv_the_rule_by_voltage_is_the_default(seed: int) -> None:
    hu, mask, spacing = random_case(400 + seed)
    volume = make_volume(hu, spacing)
    by_voltage = score(volume, mask, rule="agatston-kvp", kvp=120.0)
    default = score(volume, mask, kvp=80.0)  # the default never looks at it
    assert (by_voltage.total, by_voltage.lesions) == (default.total, default.lesions)
    assert "kvp" not in default.parameters


@pytest.mark.parametrize(
    ("kvp", "message"),
    [(None, "not known"), (140.0, "not for 140 kV"), (120.6, "for 120.6 kV"), (0.0, "0 kV")],
)
def test_no_score_at_a_voltage_that_the_rule_does_not_know(kvp: float | None, message: str) -> None:
    with pytest.raises(InputError, match=f"{message}.*the rule agatston"):
        score(make_volume(np.zeros((1, 2, 2))), np.zeros((1, 2, 2), bool), rule="agatston-kvp", kvp=kvp)


def test_who_does_not_know_the_voltage_yet_counts_from_the_lowest_threshold() -> None:
    rule = find_rule("agatston-kvp")
    assert rule.counts_from == min(limits[0] for limits in BY_VOLTAGE.values()) == 119
    assert rule.counts_below(130)
    assert not rule.counts_below(119)


@pytest.mark.parametrize(("hu", "total"), [(99, 0), (100, 5), (120, 5), (129, 5), (199, 5), (200, 9)])
def test_the_weight_is_the_one_of_the_table_and_not_its_place(hu: int, total: int) -> None:
    rule = Rule(name="from-100", threshold=100, weights=((100, 5), (200, 9)))
    assert score(make_volume(np.full((1, 1, 1), hu)), np.ones((1, 1, 1), bool), rule=rule).total == total


def test_a_lesion_without_a_threshold_counts_once_its_maximum_has_a_weight() -> None:
    hu = np.array([[[90, 100, 110], [0, 0, 0], [90, 99, 90]]])
    rule = Rule(name="mask-from-100", threshold=None, weights=((100, 1), (200, 2)))
    result = score(make_volume(hu), hu > 0, rule=rule)
    assert (result.total, result.n_counted) == (3, 3)


def test_a_threshold_that_no_weight_reaches_is_refused() -> None:
    """Such a rule would score a lesion of 120 HU as 0."""
    for threshold in (100, 129):
        with pytest.raises(
            InputError, match=rf"threshold {threshold} HU lies below the first weight's 130 HU"
        ):
            Rule(name="x", threshold=threshold)
    with pytest.raises(InputError, match="177 HU"):
        Rule(name="x", threshold=130, weights=KILOVOLT_80)
    assert Rule(name="x", threshold=100, weights=((100, 1), (200, 2))).threshold == 100


@pytest.mark.parametrize(
    "weights",
    [
        (),
        ((130,),),
        ((130, 1), (130, 2)),
        ((200, 1), (130, 2)),
        ((130, 2), (200, 2)),
        ((130, 0),),
        ((130, 1.5),),
    ],
)
def test_weights_that_are_no_table_are_refused(weights: tuple) -> None:
    with pytest.raises(InputError, match="Rule weights"):
        Rule(name="x", threshold=None, weights=weights)


def slow_counted(hu: np.ndarray, mask: np.ndarray, spacing: tuple, rule: str) -> np.ndarray:
    """The voxels that count, written anew from the description of two rules."""
    inside = {tuple(i): int(hu[tuple(i)]) for i in np.argwhere(mask).tolist()}
    if rule == "agatston":
        groups = flood({i: v for i, v in inside.items() if v >= 130}, IN_SLICE_8)
        groups = [g for g in groups if len(g) * spacing[1] * spacing[2] >= 1 - 1e-9]
    else:
        groups = [g for g in flood(inside, FACES) if len(g) >= 2 and max(g.values()) >= 130]
    counted = np.zeros(mask.shape, bool)
    for at in itertools.chain(*groups):
        counted[at] = True
    return counted


@pytest.mark.parametrize("rule", ["agatston", "ai-cac"])
@pytest.mark.parametrize("seed", range(10))
def test_the_counted_mask_is_what_counted(seed: int, rule: str) -> None:
    hu, mask, spacing = random_case(300 + seed)
    result = score(make_volume(hu, spacing), mask, rule=rule, slice_thickness=THICKNESS)
    np.testing.assert_array_equal(result.counted, slow_counted(hu, mask, spacing, rule))
    assert result.counted.dtype == np.bool_


@pytest.mark.parametrize("rule", RULES)
def test_the_counted_mask_scores_the_same_and_lies_in_the_parts_slices(rule: str) -> None:
    hu, mask, spacing = random_case(12)
    volume = make_volume(hu, spacing)
    result = score(volume, mask, rule=rule, slice_thickness=THICKNESS)
    again = score(volume, result.counted, rule=rule, slice_thickness=THICKNESS)
    assert (again.total, again.runs) == (result.total, result.runs)
    by_slice = np.zeros(len(hu), int)
    for lesion in result.lesions:
        for part in lesion.parts:
            by_slice[part.slice_index] += part.n_voxels
    np.testing.assert_array_equal(result.counted.sum(axis=(1, 2)), by_slice)


def test_the_first_and_last_voxel_of_an_array_can_count() -> None:
    hu = np.zeros((2, 2, 2))
    hu[0, 0, 0] = hu[1, 1, 1] = 150
    assert score(make_volume(hu), hu > 0).counted.sum() == 2
    assert not score(make_volume(hu), np.zeros(hu.shape, bool)).counted.any()


def test_a_rule_is_found_again_in_its_parameters() -> None:
    own = Rule(name="mine", threshold=100, weights=((100, 1), (200, 2)), min_voxels=3)
    volume = make_volume(np.full((1, 2, 2), 150))
    for rule in (own, *RULES.values()):
        said = score(volume, np.ones((1, 2, 2), bool), rule=rule, slice_thickness=3.0).parameters
        assert Rule.from_parameters(json.loads(json.dumps(said))) == rule
    for broken in ({}, {"name": "x"}, {"name": "x", "weights": 7}, {"name": "x", "weights": [[1]]}):
        with pytest.raises(InputError, match="no parameters of a scoring rule"):
            Rule.from_parameters(broken)


def test_parameters_tell_the_whole_rule() -> None:
    volume = make_volume(np.full((1, 2, 2), 150), (2.5, 0.7, 0.7))
    result = score(volume, np.ones((1, 2, 2), bool), slice_thickness=3.0, calibration_factor=0.0007)
    document = json.loads(json.dumps(result.to_dict()))
    for attribute in dataclasses.fields(Rule):
        expected = json.loads(json.dumps(getattr(RULES["agatston"], attribute.name)))
        assert document["parameters"][attribute.name] == expected
    assert document["parameters"]["thickness_factor"] == pytest.approx(2.5 / 3)
    assert document["parameters"]["spacing_mm"] == [2.5, 0.7, 0.7]
    assert document["risk_group"] == int(result.risk_group)
    assert isinstance(result, CalciumScore)


def test_risk_groups() -> None:
    cases = {0: 0, 1e-3: 1, 100: 1, 100.01: 2, 300: 2, 300.01: 3, 5000: 3}
    assert {total: int(risk_group(total)) for total in cases} == cases
    assert risk_group(sum([0.1] * 3) * 1000 / 3) is RiskGroup.LOW  # 100.00000000000001
    assert [group.label for group in RiskGroup] == ["very low", "low", "moderate", "high"]
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            risk_group(wrong)


def test_increment_is_the_right_divisor() -> None:
    """Five noiseless balls of calcium: only the increment makes protocols comparable.

    The lesions are our own (the field's study does not give its shapes): each protocol averages the same
    balls over slices of its thickness, one slice every increment.
    """
    balls = [(14.0, 12.0, 12.0, 2.5, 600), (22.0, 30.0, 14.0, 3.5, 450), (33.0, 18.0, 30.0, 2.0, 900),
             (40.0, 32.0, 32.0, 3.0, 350), (27.0, 10.0, 36.0, 4.0, 500)]  # fmt: skip
    fine_z = np.arange(0.0, 55.0, 0.25)
    y, x = np.meshgrid(np.arange(64) * 0.7, np.arange(64) * 0.7, indexing="ij")
    fine = np.zeros((len(fine_z), 64, 64), dtype=np.float32)
    for cz, cy, cx, radius, density in balls:
        inside = (fine_z - cz)[:, None, None] ** 2 + (y - cy) ** 2 + (x - cx) ** 2 <= radius**2
        fine[inside] = density

    def scan(thickness: float, increment: float) -> Volume:
        centres = np.arange(5.0, 50.0, increment)
        slices = [fine[np.abs(fine_z - c) < thickness / 2].mean(axis=0) for c in centres]
        return make_volume(np.round(slices), (increment, 0.7, 0.7))

    protocols = [(3.0, 3.0), (2.5, 1.25), (1.0, 1.0), (5.0, 5.0)]
    totals: dict[str, list[float]] = {
        rule: [
            score(volume, np.ones(volume.hu.shape, bool), rule=rule, slice_thickness=thickness).total
            for thickness, increment in protocols
            for volume in [scan(thickness, increment)]
        ]
        for rule in ("classic", "agatston")
    }
    spread = {rule: max(values) / min(values) for rule, values in totals.items()}
    assert spread["agatston"] < 1.35
    assert spread["classic"] > 3.0
    # Overlapping slices (2.5 mm every 1.25 mm) against contiguous ones of 3 mm: SliceThickness doubles them.
    by_thickness = dataclasses.replace(RULES["agatston"], name="t", thickness="slice-thickness")
    overlapping = scan(2.5, 1.25)
    doubled = score(
        overlapping, np.ones(overlapping.hu.shape, bool), rule=by_thickness, slice_thickness=2.5
    ).total
    assert doubled == pytest.approx(2 * totals["agatston"][1])
