"""The cache of crops and the batches drawn from it, against slow and obvious ways to say the same."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from deepcac2.errors import DiskFull, TrainingError
from deepcac2.imaging.crop import CROP_SHAPE
from deepcac2.imaging.heart_position import heart_depth, position
from deepcac2.models.calcium.network import normalise
from deepcac2.training.crops import (
    ARTERY,
    BRIGHT,
    CALCIUM,
    GRID,
    KIND,
    NEAR,
    OTHER,
    Crop,
    CropCache,
    CropSource,
    build_cache,
    patch_kinds,
    split_patients,
    window_of,
)
from deepcac2.training.loop import prefetch
from deepcac2.training.patches import (
    Batches,
    GridBatches,
    Mistakes,
    PatchRecipe,
    Place,
    RandomBatches,
    painted_outside,
    without_fat,
)

CPU = torch.device("cpu")


def crop(seed: int, *, calcium: bool = True) -> Crop:
    """A heart in the middle, calcium in it for some, a valve in it, a bone beside it."""
    rng = np.random.default_rng(seed)
    hu = rng.integers(-100, 120, CROP_SHAPE, dtype=np.int16)
    label = np.zeros(CROP_SHAPE, dtype=np.uint8)
    label[15:45, 60:190, 60:190] = 2
    hu[20:24, 70:80, 70:80] = 500
    hu[:, 230:245, 100:140] = 800
    if calcium:
        hu[30:33, 150:156, 150:156] = 400
        label[30:33, 150:156, 150:156] = 1
    return hu, label


def sources(*calcium: bool) -> list[CropSource]:
    return [
        CropSource(name=f"c{i}", patient=f"p{i}", make=partial(crop, i, calcium=c))
        for i, c in enumerate(calcium)
    ]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> CropCache:
    return build_cache(sources(True, True, False), tmp_path_factory.mktemp("cache"), settings={})


def described(cache: CropCache, place: Place) -> int:
    """The kind of a patch, said once more, voxel by voxel."""
    hu, label = cache.hu[place[0]], cache.label[place[0]]
    box = tuple(slice(a, a + n) for a, n in zip(place[1], (16, 64, 64), strict=True))
    if (label[box] == 1).any():
        return CALCIUM
    if ((hu[box] >= 130) & (label[box] == 2)).any():
        return NEAR
    return BRIGHT if (hu[box] >= 130).any() else 0


def test_the_grid_is_the_papers() -> None:
    """256 x 256 x 58 voxels, patches of 64 x 64 x 16, steps of 32 x 32 x 8, the last one moved back."""
    assert len(GRID) == 7 * 7 * 7
    seen = np.zeros(CROP_SHAPE, dtype=bool)
    for corner in GRID:
        seen[window_of(corner)] = True
    assert seen.all()
    assert {c[0] for c in GRID} == {0, 8, 16, 24, 32, 40, 42}
    assert {c[1] for c in GRID} == {c[2] for c in GRID} == set(range(0, 193, 32))


def test_the_cache_keeps_what_it_was_given(cache: CropCache) -> None:
    for i, calcium in enumerate((True, True, False)):
        hu, label = crop(i, calcium=calcium)
        np.testing.assert_array_equal(cache.hu[i], hu)
        np.testing.assert_array_equal(cache.label[i], label)
        kinds = [described(cache, (i, corner)) for corner in GRID]
        np.testing.assert_array_equal(cache.kinds[i], kinds)
        np.testing.assert_array_equal(patch_kinds(hu, label), kinds)
    assert set(np.unique(cache.kinds)) == {0, CALCIUM, NEAR, BRIGHT}
    assert isinstance(cache.hu[0], np.memmap)


def test_an_interrupted_cache_goes_on(tmp_path: Path) -> None:
    made: list[str] = []

    def make(name: str, *, breaks: bool) -> Crop:
        if breaks:
            raise KeyboardInterrupt
        made.append(name)
        return crop(1)

    def given(breaks: bool) -> list[CropSource]:
        return [
            CropSource(name=n, patient=n, make=partial(make, n, breaks=breaks and n == "b")) for n in "abc"
        ]

    with pytest.raises(KeyboardInterrupt):
        build_cache(given(True), tmp_path, settings={"x": 1})
    cache = build_cache(given(False), tmp_path, settings={"x": 1})
    assert made == ["a", "b", "c"]
    assert cache.names == ("a", "b", "c")
    for wrong in ({"x": 2}, {}):
        with pytest.raises(TrainingError, match="other scans or settings"):
            build_cache(given(False), tmp_path, settings=wrong)
    with pytest.raises(TrainingError, match="other scans or settings"):
        build_cache(given(False)[:2], tmp_path, settings={"x": 1})


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 5 MB: a crop has 7.6."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_breaks_nothing(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    build_cache(sources(True), tmp_path / "other", settings={})
    request.getfixturevalue("full_disk")
    with pytest.raises(DiskFull, match="no space left"):
        build_cache(sources(True, False), tmp_path / "cache", settings={})
    assert [f.name for f in (tmp_path / "cache").iterdir()] == ["cache.json"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert len(build_cache(sources(True, False), tmp_path / "cache", settings={}).hu) == 2


@pytest.mark.parametrize("window", [(-135.0, 500.0), (-100.0, 90.0)])
def test_batches_are_what_they_should_be(cache: CropCache, window: tuple[float, float]) -> None:
    recipe = PatchRecipe(batch_size=8, near_share=0.5, seed=3, window_hu=window)
    for batches in (GridBatches(cache, [0, 2], recipe), RandomBatches(cache, [0, 2], recipe)):
        for step in range(6):
            places = batches.places(step)
            assert {crop for crop, _ in places} <= {0, 2}
            kinds = [described(cache, place) for place in places]
            assert kinds[:4] == [CALCIUM] * 4
            assert set(kinds[4:]) <= {NEAR, BRIGHT}
            image, label = batches.batch(step)
            assert image.shape == label.shape == (8, 1, 16, 64, 64)
            assert (image.dtype, label.dtype) == (torch.float32, torch.uint8)
            for k, (number, corner) in enumerate(places):
                box = window_of(corner)
                hu = torch.from_numpy(cache.hu[number][box].astype(np.float32))
                torch.testing.assert_close(image[k, 0], normalise(hu, window_hu=window), atol=1e-5, rtol=0)
                np.testing.assert_array_equal(label[k, 0], cache.label[number][box] == 1)


def test_what_is_known_not_to_be_coronary_is_shown_as_often_as_asked(tmp_path: Path) -> None:
    """One crop with a plaque, a valve and much noise: without the share, the valve is hardly ever seen."""
    rng = np.random.default_rng(0)
    hu = np.where(rng.random((58, 256, 256)) < 0.01, 200, 40).astype(np.int16)
    label = np.full(hu.shape, 2, dtype=np.uint8)
    plaque, valve = np.s_[4:6, 20:24, 20:24], np.s_[50:52, 200:204, 200:204]
    hu[plaque], label[plaque] = 400, CALCIUM
    hu[valve], label[valve] = 400, OTHER
    cache = build_cache([CropSource(name="a", patient="a", make=lambda: (hu, label))], tmp_path, settings={})
    seen = {}
    for share in (0.0, 0.5):
        batches = RandomBatches(
            cache, [0], PatchRecipe(batch_size=16, near_share=1.0, other_share=share, seed=1)
        )
        places = [place for step in range(25) for place in batches.places(step)[8:]]
        boxes = [label[window_of(corner)] for _, corner in places]
        assert not any((b == CALCIUM).any() for b in boxes)
        seen[share] = np.mean([(b == OTHER).any() for b in boxes])
    assert seen[0.0] < 0.15
    assert 0.4 < seen[0.5] < 0.65


def test_mistakes_are_shown_as_often_as_asked(tmp_path: Path) -> None:
    """One voxel of a crop full of noise was taken for calcium, one of two plaques was missed."""
    rng = np.random.default_rng(0)
    hu = np.where(rng.random((58, 256, 256)) < 0.01, 200, 40).astype(np.int16)
    label = np.full(hu.shape, 2, dtype=np.uint8)
    for plaque in np.s_[4:6, 20:24, 20:24], np.s_[30:34, 200:210, 20:30]:
        hu[plaque], label[plaque] = 400, CALCIUM
    cache = build_cache([CropSource(name="a", patient="a", make=lambda: (hu, label))], tmp_path, settings={})
    false, missed = (50, 200, 200), (5, 22, 22)
    batches = RandomBatches(cache, [0], PatchRecipe(batch_size=16, near_share=1.0, mistake_share=0.5, seed=1))

    def shares() -> tuple[float, float]:
        places = [batches.places(step) for step in range(25)]
        holds = [
            [
                bool((np.subtract(v, c) >= 0).all() and (np.subtract(v, c) < (16, 64, 64)).all())
                for _, c in part
            ]
            for v, part in [(v, p) for s in places for v, p in ((missed, s[:8]), (false, s[8:]))]
        ]
        return float(np.mean(holds[::2])), float(np.mean(holds[1::2]))

    before = shares()
    batches.show(
        Mistakes(false={0: np.array([false], dtype=np.uint8)}, missed={0: np.array([missed], dtype=np.uint8)})
    )
    after = shares()
    assert before[0] < 0.25
    assert before[1] < 0.15
    assert after[0] == pytest.approx(0.5, abs=0.12)
    assert after[1] == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("kind", [GridBatches, RandomBatches])
def test_a_batch_follows_from_seed_and_step(cache: CropCache, kind: type[Batches]) -> None:
    def make(seed: int = 3) -> Batches:
        recipe = PatchRecipe(batch_size=4, near_share=0.75, noise_hu=20.0, offset_hu=5.0, seed=seed)
        return kind(cache, [0, 1, 2], recipe)

    one, two = make(), make()
    for step in (7, 2, 40, 2):
        assert all(torch.equal(a, b) for a, b in zip(one.batch(step), two.batch(step), strict=True))
        two.batch(step + 1)
    assert not torch.equal(one.batch(2)[0], one.batch(3)[0])
    assert not torch.equal(one.batch(2)[0], make(seed=4).batch(2)[0])


def test_noise_is_as_strong_as_asked(cache: CropCache) -> None:
    """In the middle of the window, where nothing is clipped: differences to the noise-free batch."""
    quiet = RandomBatches(cache, [0], PatchRecipe(batch_size=16, near_share=1.0, seed=1))
    noisy = RandomBatches(cache, [0], PatchRecipe(batch_size=16, near_share=1.0, noise_hu=10.0, seed=1))
    spreads = []
    for step in range(4):
        before, after = quiet.batch(step)[0] * 635 - 135, noisy.batch(step)[0] * 635 - 135
        inside = (before > -60) & (before < 100)
        spreads += [float((a - b)[i].std()) for a, b, i in zip(after, before, inside, strict=True)]
    assert 0 < min(spreads) < max(spreads) <= 10.1
    assert 3 < np.mean(spreads) < 7


def test_an_epoch_shows_each_patch_with_calcium_once(cache: CropCache) -> None:
    batches = GridBatches(cache, [0, 1, 2], PatchRecipe(batch_size=6, near_share=0.75, seed=1))
    positive = {(i, GRID[k]) for i, k in np.argwhere(cache.kinds == CALCIUM)}
    assert batches.patches_per_epoch == 2 * len(positive)
    steps = batches.steps_per_epoch
    assert steps == 2 * len(positive) // 6
    orders = []
    for epoch in range(3):
        places = [p for s in range(steps) for p in batches.places(epoch * steps + s)]
        counts = Counter(p for p in places if described(cache, p) == CALCIUM)
        assert set(counts.values()) == {1}
        assert set(counts) <= positive
        assert len(counts) == len(places) / 2
        kinds = Counter(described(cache, p) for p in places)
        assert kinds[NEAR] == pytest.approx(3 * kinds[BRIGHT], abs=4)
        orders.append(places)
    assert orders[0] != orders[1] != orders[2]


def test_data_that_gives_no_batches(tmp_path: Path) -> None:
    cache = build_cache(sources(False), tmp_path, settings={})
    for kind in (GridBatches, RandomBatches):
        with pytest.raises(TrainingError, match="no scan to train on has calcium"):
            kind(cache, [0], PatchRecipe(batch_size=2, near_share=0.5, seed=1))


def test_a_batch_larger_than_the_data(cache: CropCache) -> None:
    with pytest.raises(TrainingError, match="make batch_size smaller"):
        GridBatches(cache, [0], PatchRecipe(batch_size=4000, near_share=0.5, seed=1))


def fake_cache(patients: list[int], calcium: list[bool]) -> CropCache:
    kinds = np.zeros((len(patients), len(GRID)), dtype=np.uint8)
    kinds[calcium, 5] = CALCIUM
    return CropCache(
        names=tuple(str(i) for i in range(len(patients))),
        patients=tuple(patients),
        hu=(),
        label=(),
        kinds=kinds,
    )


@pytest.mark.parametrize(("with_calcium", "without"), [(40, 10), (10, 40), (2, 2), (3, 0), (2, 1), (7, 1)])
def test_the_split_keeps_the_share_of_calcium(with_calcium: int, without: int) -> None:
    n = with_calcium + without
    cache = fake_cache(list(range(n)), [True] * with_calcium + [False] * without)
    train, held = split_patients(cache, 0.2, seed=5)
    assert sorted(train + held) == list(range(n))
    positive = sum(i < with_calcium for i in held)
    assert positive == max(1, round(0.2 * with_calcium))
    assert len(held) - positive == max(round(0.2 * without), int(without > 1))
    assert split_patients(cache, 0.2, seed=5) == (train, held)
    assert n < 50 or split_patients(cache, 0.2, seed=6) != (train, held)


def test_scans_of_one_patient_stay_together() -> None:
    patients = [i // 3 for i in range(60)]
    cache = fake_cache(patients, [i % 6 == 1 for i in range(60)])
    train, held = split_patients(cache, 0.2, seed=1)
    ours, theirs = {patients[i] for i in train}, {patients[i] for i in held}
    assert not ours & theirs
    assert len(theirs) == 4
    assert sum(p % 2 == 0 for p in theirs) == 2  # patients with an even number have calcium


@pytest.mark.parametrize("workers", [1, 3])
def test_prefetching_changes_nothing(cache: CropCache, workers: int) -> None:
    batches = GridBatches(cache, [0, 1, 2], PatchRecipe(batch_size=4, near_share=0.5, noise_hu=9.0, seed=1))
    steps = range(3, 3 + 2 * batches.steps_per_epoch)
    found = list(prefetch(batches, steps, device=CPU, workers=workers))
    assert len(found) == len(steps)
    for step, (image, label) in zip(steps, found, strict=True):
        expected = batches.batch(step)
        assert torch.equal(image, expected[0])
        assert torch.equal(label, expected[1])


def test_an_error_in_a_thread_reaches_the_training(cache: CropCache) -> None:
    class Broken(GridBatches):
        def places(self, step: int) -> list[Place]:
            if step == 5:
                raise TrainingError("the fifth")
            return super().places(step)

    batches = Broken(cache, [0], PatchRecipe(batch_size=2, near_share=0.5, seed=1))
    stream = prefetch(batches, range(10), device=CPU, workers=2)
    for _ in range(5):
        next(stream)
    with pytest.raises(TrainingError, match="the fifth"):
        next(stream)


def placed_cache(folder: Path) -> CropCache:
    """One crop with names and depth: an RCA's lesion, a valve, and a heart of which the depth is known."""

    def make() -> Crop:
        hu, label = crop(3)
        label[label == CALCIUM] = ARTERY + 4
        label[20:24, 70:80, 70:80] = KIND + 2
        heart = np.zeros(CROP_SHAPE, dtype=np.float32)
        heart[15:45, 60:190, 60:190] = 1
        return hu, label, heart_depth(heart)

    source = CropSource(name="c", patient="p", make=make)
    return build_cache([source], folder, settings={"named": True})


def test_placed_batches_say_where_they_lie(tmp_path: Path) -> None:
    cache = placed_cache(tmp_path)
    recipe = PatchRecipe(batch_size=8, other_share=0.5, painted_share=0.5, seed=4)
    batches = RandomBatches(cache, [0], recipe, placed=True, kinds=True)
    image, label = batches.batch(0)
    assert image.shape == (8, 5, 16, 64, 64)
    values = set(label.unique().tolist())
    assert {ARTERY + 4, KIND + 2} <= values <= {0, NEAR, ARTERY + 4, KIND + 2}
    whole = position(np.asarray(cache.depth[0]), cache.boxes[0])
    for k, (_, corner) in enumerate(batches.places(0)):
        off = image[k, 1:].numpy() - whole[(slice(None), *window_of(corner))]
        shift = off.reshape(4, -1)
        assert np.ptp(shift, axis=1).max() < 1e-5  # one shift a patch and channel
        assert np.abs(shift).max() < 0.5
    bare, mask = RandomBatches(cache, [0], replace(recipe, painted_share=0.0)).batch(0)
    assert bare.shape == (8, 1, 16, 64, 64)
    assert set(mask.unique().tolist()) == {0, 1}


def test_what_is_painted_lies_outside_and_spares_calcium(tmp_path: Path) -> None:
    cache = placed_cache(tmp_path)
    rng = np.random.default_rng(2)
    hu, depth = (np.asarray(a[0][10:26, 30:94, 30:94]) for a in (cache.hu, cache.depth))
    calcium = np.zeros(hu.shape, dtype=bool)
    calcium[:, :20, :20] = True
    changed = np.zeros(hu.shape, dtype=bool)
    for _ in range(10):
        out = painted_outside(hu.astype(np.float32), depth, calcium, rng)
        changed |= out > hu + 50
    assert changed.any()
    assert not changed[calcium].any()
    assert not changed[depth > 15].any()  # 3 mm inside


def test_lean_patches_lose_fat_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    hu = np.full((16, 64, 64), -100, dtype=np.float32)
    hu[:, :20], hu[:, 20:40] = 400, -800
    turned = np.zeros(hu.shape, dtype=bool)
    for _ in range(5):
        out = without_fat(hu, rng)
        assert (out[:, :40] == hu[:, :40]).all()
        turned |= out != hu
        assert 0 < (out[out != hu]).mean() < 70
    assert turned[:, 40:].mean() > 0.8
