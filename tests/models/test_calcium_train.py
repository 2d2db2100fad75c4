"""Training of the calcium network: the crops it sees, and that a killed run goes on exactly.

The scans are spheres: a heart, calcium in it, and a bone beside it, written in nnU-Net's layout.
"""

from __future__ import annotations

import copy
import csv
import json
import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file

from deepcac2.dicom.seg.reader import read_segmentation
from deepcac2.errors import TrainingError, WeightsError, WorkflowError
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.files import write_image
from deepcac2.imaging.masks import box_centre
from deepcac2.models.calcium.network import CalciumModel, crop_grid, to_crop
from deepcac2.models.calcium.train import (
    CalciumRecipe,
    held_out_batches,
    make_batches,
    make_trainer,
    train,
)
from deepcac2.models.heart.network import HeartModel
from deepcac2.simulation import RARE, default_geometry, has_rare, simulate_patient
from deepcac2.training.export import export_networks
from deepcac2.training.monitor import read_log
from deepcac2.training.recipe import BUNDLED, Inputs, build, load_recipe
from deepcac2.training.sources import crop_of, crop_sources, hard_seeds, make_crops, simulated_crop
from deepcac2.training.trainer import Trainer, binary_dice_loss
from deepcac2.weights import resolve

CPU = torch.device("cpu")
TINY = CalciumRecipe(
    name="tiny",
    sampling="random",
    steps=8,
    batch_size=2,
    noise_hu=20.0,
    offset_hu=5.0,
    mining_steps=(4,),
    mistake_share=0.5,
    validation_share=0.34,
    validation_patches=8,
    log_every=2,
    validate_every=4,
    checkpoint_every=3,
    architecture={"channels": [4, 8], "strides": [2], "num_res_units": 1, "norm": "batch", "dropout": 0.1},
)
GRID = Geometry(shape=(44, 80, 80), spacing=(3.0, 2.0, 2.0), origin=(-80.0, -80.0, 10.0))


def given(*data: Path, start: str = "", backgrounds: Sequence[Path] = ()) -> Inputs:
    return Inputs(device=CPU, data=data, start=start, backgrounds=backgrounds)


def sphere(centre: Sequence[float], radius: float) -> npt.NDArray[np.bool_]:
    """bool (z, y, x) on GRID: within `radius` mm of `centre`, mm from the grid's first voxel (z, y, x)."""
    index = np.indices(GRID.shape).T * GRID.spacing - np.asarray(centre)
    return np.asarray((index**2).sum(-1) <= radius**2).T


def scan(seed: int, *, calcium: bool) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """HU and labels (1 heart, 2 calcium) of one patient."""
    rng = np.random.default_rng(seed)
    hu = rng.normal(-100.0, 15.0, GRID.shape)
    labels = np.zeros(GRID.shape, dtype=np.uint8)
    middle = np.array([66.0, 80.0, 80.0]) + rng.uniform(-8, 8, 3)
    heart = sphere(middle, 45.0)
    hu[heart] += 140
    labels[heart] = 1
    hu[sphere(middle + np.array([0.0, 20.0, -15.0]), 4.0)] += 300
    hu[sphere((66.0, 145.0, 80.0), 12.0)] += 600
    if calcium:
        lesion = sphere(middle + np.array([10.0, -15.0, 12.0]), rng.uniform(5.0, 8.0))
        hu[lesion] += 350
        labels[lesion] = 2
    return hu.round().astype(np.int16), labels


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six annotated scans in nnU-Net's layout, four with calcium."""
    folder = tmp_path_factory.mktemp("scans")
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "heart": 1, "calcium": 2}}))
    for seed in range(6):
        hu, labels = scan(seed, calcium=seed < 4)
        write_image(folder / "imagesTr" / f"case{seed}_0000.nii.gz", hu, GRID)
        write_image(folder / "labelsTr" / f"case{seed}.nii.gz", labels, GRID)
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, scans: Path) -> Path:
    """A finished run of eight steps."""
    folder = tmp_path_factory.mktemp("unbroken")
    train(TINY, folder, given(scans))
    return folder


def test_crops_are_what_inference_sees() -> None:
    """In every orientation: a flipped and transposed scan gives the same crop."""
    hu, labels = scan(1, calcium=True)
    heart, calcium = labels > 0, labels == 2
    centre = box_centre(heart, GRID)
    recipe = replace(TINY, near_heart_mm=0.0)
    crop, label = crop_of(Volume(hu=hu, geometry=GRID), heart, calcium, centre, recipe)
    grid = crop_grid(GRID, centre)
    np.testing.assert_array_equal(crop, to_crop(hu, GRID, grid, device=CPU).round().numpy())
    voxel = grid.voxel_volume
    assert (label == 1).sum() * voxel == pytest.approx(calcium.sum() * GRID.voxel_volume, rel=0.1)
    assert (label > 0).sum() * voxel == pytest.approx(heart.sum() * GRID.voxel_volume, rel=0.1)

    z, y, x = GRID.shape
    turned = Geometry(
        shape=(x, z, y),
        spacing=(2.0, 3.0, 2.0),
        origin=tuple(GRID.to_lps([z - 1, 0, x - 1])),  # type: ignore[arg-type]
        axes=((-1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0)),
    )

    def turn(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.ascontiguousarray(array[::-1, :, ::-1].transpose(2, 0, 1))

    again = crop_of(Volume(hu=turn(hu), geometry=turned), turn(heart), turn(calcium), centre, recipe)
    np.testing.assert_array_equal(again[0], crop)
    np.testing.assert_array_equal(again[1], label)


@pytest.mark.slow
def test_simulated_patients_become_crops(tmp_path: Path) -> None:
    recipe = replace(TINY, patients=1, first_seed=3)
    (source,) = crop_sources(recipe, given())
    hu, label = source.make()
    assert (label == 1).any()
    assert (label == 2).sum() > (label == 1).sum()
    assert -60 < np.median(hu[label == 2]) < 120


def off_centre(label: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """How far the middle of the box of what is in or near the heart lies off the crop's, mm (z, y, x)."""
    index = np.argwhere(label > 0)
    return ((index.min(axis=0) + index.max(axis=0)) / 2 - (np.array(label.shape) - 1) / 2) * (2.5, 0.7, 0.7)


@pytest.mark.slow
def test_the_heart_of_a_simulated_patient_lies_in_the_crop_as_at_inference() -> None:
    """Patient 31's box has its middle 8 and 7 mm off the centre of gravity along y and z."""
    hu, label = simulated_crop(1, 31, replace(TINY, near_heart_mm=0.0, centre_jitter_mm=0.0))
    assert np.abs(off_centre(label)).max() < 1.5
    faces = [hu.take(i, axis=axis) for axis in range(3) for i in (0, -1)]
    assert all((face > -1024).any() for face in faces)  # all that the crop holds was drawn
    _, shifted = simulated_crop(1, 31, replace(TINY, near_heart_mm=0.0, centre_jitter_mm=6.0))
    shift = np.random.default_rng([31, 77]).normal(0.0, 6.0, 3)[::-1]
    np.testing.assert_allclose(off_centre(shifted), -shift, atol=2.5)


@pytest.mark.slow
def test_an_unknown_heart_is_found_by_the_heart_model(
    simulated: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same patient with and without a heart in its annotation: nearly the same crop."""
    from deepcac2.dicom import discover, read_series

    volume = read_series(discover(simulated / "SIM-0003" / "ct").series[0]).volume
    calcium = read_segmentation(simulated / "SIM-0003" / "truth.seg.dcm", volume.geometry)["calcium"]
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / name).mkdir()
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "calcium": 1}}')
    write_image(tmp_path / "imagesTr" / "c_0000.nii.gz", volume.hu, volume.geometry)
    write_image(tmp_path / "labelsTr" / "c.nii.gz", calcium, volume.geometry)
    with caplog.at_level(logging.INFO):
        (source,) = crop_sources(TINY, given(tmp_path))
        hu, label = source.make()
    assert "the heart is not annotated" in caplog.text
    mask = HeartModel.load("bundled", CPU).predict(volume).mask
    expected = crop_of(volume, mask, calcium, box_centre(mask, volume.geometry), TINY)
    np.testing.assert_allclose(hu, expected[0], atol=1)
    assert (label == 1).sum() == pytest.approx((expected[1] == 1).sum(), rel=0.02)


def losses(folder: Path) -> list[dict[str, str]]:
    """The log without the columns that tell times."""
    with (folder / "log.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    return [{k: v for k, v in r.items() if k not in ("patches_per_second", "gpu_utilisation")} for r in rows]


@pytest.mark.slow
def test_an_interrupted_run_writes_a_checkpoint_and_goes_on_to_the_same_weights(
    scans: Path, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGINT far from any checkpoint of the recipe's, against a run that nobody touched, bit for bit."""
    shutil.copytree(work / "crops", tmp_path / "crops")
    recipe = replace(TINY, checkpoint_every=1000)
    step = Trainer.train

    def interrupted(self: Trainer, *batch: torch.Tensor) -> None:
        if self.step == 5:
            signal.raise_signal(signal.SIGINT)
        step(self, *batch)

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Trainer, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path, given(scans))
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 6
    found = (tmp_path / "mistakes-4.npz").stat().st_mtime_ns
    train(recipe, tmp_path, given(scans))
    assert (tmp_path / "mistakes-4.npz").stat().st_mtime_ns == found  # those of then, not looked for anew
    networks = [CalciumModel.load(resolve(f / "weights", "calcium"), CPU).network for f in (tmp_path, work)]
    after, unbroken = (dict(network.state_dict()) for network in networks)
    assert all(torch.equal(after[name], unbroken[name]) for name in unbroken)
    assert losses(tmp_path) == losses(work)


CHILD = """
import json, os, signal, sys
from pathlib import Path
import torch
from deepcac2.models.calcium.train import CalciumRecipe, train
from deepcac2.training.recipe import Inputs
from deepcac2.training.trainer import Trainer

stop, work, data, recipe = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
torch.set_num_threads(int(sys.argv[5]))
step = Trainer.train

def dying(self, image, label):
    if self.step == stop:
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, image, label)

Trainer.train = dying
train(CalciumRecipe(**recipe), work, Inputs(device=torch.device("cpu"), data=[data]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("sampling", "amp"), [("random", False), ("grid", True)])
def test_a_killed_run_goes_on_with_the_same_losses_and_weights(
    scans: Path, work: Path, tmp_path: Path, sampling: str, amp: bool
) -> None:
    """SIGKILL between two checkpoints, twice, against a run that nobody touched, bit for bit."""
    recipe, unbroken = TINY, work
    if sampling == "grid":
        recipe = replace(TINY, sampling="grid", mining_steps=(), steps=0, epochs=1, batch_size=8, amp=amp)
        unbroken = tmp_path / "unbroken"
        shutil.copytree(work / "crops", unbroken / "crops")
        train(recipe, unbroken, given(scans))
    broken = tmp_path / "broken"
    shutil.copytree(work / "crops", broken / "crops")
    assert int(losses(unbroken)[-1]["step"]) > 7
    for stop in (5, 7):
        command = [
            sys.executable,
            "-c",
            CHILD,
            str(stop),
            str(broken),
            str(scans),
            json.dumps(asdict(recipe)),
        ]
        done = subprocess.run(
            [*command, str(torch.get_num_threads())], capture_output=True, text=True, check=False
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (broken / "weights").exists()
        assert int(torch.load(broken / "checkpoint.pt")["step"]) < stop
    train(recipe, broken, given(scans))
    assert losses(broken) == losses(unbroken)
    states = [torch.load(folder / "checkpoint.pt") for folder in (broken, unbroken)]
    for part in ("network", "scaler"):
        ours, theirs = (s[part] for s in states)
        assert list(ours) == list(theirs)
        assert all(torch.equal(torch.as_tensor(ours[k]), torch.as_tensor(theirs[k])) for k in ours)
    assert torch.equal(*(s["rng"] for s in states))
    hashes = [resolve(folder / "weights", "calcium").files for folder in (broken, unbroken)]
    assert hashes[0] == hashes[1]


def test_a_finished_run_says_how_good_and_how_fast(work: Path) -> None:
    weights = resolve(work / "weights", "calcium")
    assert weights.metadata["training"]["recipe"]["name"] == "tiny"
    assert weights.metadata["training"]["data"] == "6 annotated scans"
    assert weights.metadata["measured"]["held-out crops"] == 2
    assert weights.domain is not None
    assert (weights.domain.increment_mm, weights.domain.pixel_mm) == ((3.0, 3.0), (2.0, 2.0))
    page = (work / "evaluation" / "report.md").read_text()
    assert page.startswith("# Held-out crops of tiny\n")
    assert "2 of 2 patients: 2 scored" in page
    with (work / "evaluation" / "cases.csv").open() as handle:
        cases = list(csv.DictReader(handle))
    assert sorted(float(c["true_score"]) > 0 for c in cases) == [False, True]
    assert float(next(c for c in cases if float(c["true_score"]))["true_score"]) > 10
    assert list((work / "tensorboard").glob("events.*"))
    speed = json.loads((work / "training.json").read_text())
    assert speed["patches_per_second"] > 0
    assert speed["gpu_utilisation_percent"] is None
    kinds = np.stack([np.load(f) for f in sorted((work / "crops").glob("*.kinds.npy"))])
    assert 0 < speed["patches_per_epoch"] < 2 * (kinds == 1).sum()


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_and_can_be_taken(scans: Path, work: Path, tmp_path: Path) -> None:
    rows = [row for row in read_log(work / "log.csv") if row["validation_dice"]]
    best = torch.load(work / "best.pt")
    highest = max(float(row["validation_dice"]) for row in rows)
    assert best["step"] == next(int(r["step"]) for r in rows if float(r["validation_dice"]) == highest)
    shutil.copytree(work, again := tmp_path / "again")
    earlier = torch.load(again / "checkpoint.pt")  # another network, so that it shows which was taken
    earlier["network"] = {name: tensor + 1 for name, tensor in earlier["network"].items()}
    torch.save(earlier, again / "best.pt")
    folder = train(TINY, again, replace(given(scans), best=True))
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, earlier["network"][name]), name
    said = json.loads((folder / "weights.json").read_text())["measured"]["chosen"]
    assert said == f"step {earlier['step']} of {TINY.steps}, by the Dice of held-out patches"


def test_the_exported_set_loads_and_predicts(work: Path) -> None:
    model = CalciumModel.load(resolve(work / "weights", "calcium"), CPU)
    hu, labels = scan(0, calcium=True)
    centre = box_centre(labels > 0, GRID)
    prediction = model.predict(Volume(hu=hu, geometry=GRID), centre, keep_probability=True)
    assert prediction.probability is not None
    assert np.isfinite(prediction.probability).all()
    assert prediction.mask.shape == GRID.shape


@pytest.mark.slow
def test_it_learns(scans: Path, work: Path, tmp_path: Path) -> None:
    """Sixty steps find some of the spheres; an untrained network has a Dice below 0.01."""
    shutil.copytree(work / "crops", tmp_path / "crops")
    architecture = {**TINY.architecture, "dropout": 0.0}
    recipe = replace(
        TINY, steps=60, batch_size=4, learning_rate=0.02, log_every=60, architecture=architecture
    )
    train(replace(recipe, validate_every=60, checkpoint_every=60), tmp_path, given(scans))
    assert float(losses(tmp_path)[-1]["validation_dice"]) > 0.1


@pytest.mark.slow
def test_a_training_can_begin_with_weights(scans: Path, work: Path, tmp_path: Path) -> None:
    """With a learning rate of nothing the network stays what it began as."""
    shutil.copytree(work / "crops", tmp_path / "crops")
    still = replace(TINY, name="still", steps=1, mining_steps=(), learning_rate=0.0, seed=5)
    start = resolve(work / "weights", "calcium")
    train(still, tmp_path, given(scans, start=str(start.path)))
    found = resolve(tmp_path / "weights", "calcium")
    assert found.metadata["training"]["recipe"]["start"] == f"tiny@{start.hash[:12]}"
    before, after = (dict(CalciumModel.load(w, CPU).network.named_parameters()) for w in (start, found))
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(TrainingError, match="belongs to another recipe"):
        train(still, tmp_path, given(scans))
    other = replace(still, architecture={**TINY.architecture, "channels": [4, 6]})
    with pytest.raises(WeightsError, match="are another network than the recipe's"):
        train(other, tmp_path, given(scans, start=str(start.path)))


def test_the_window_of_a_recipe_is_that_of_its_set(work: Path, tmp_path: Path) -> None:
    recipe = replace(TINY, window_hu=(-100.0, 400.0))
    network = CalciumModel.load(resolve(work / "weights", "calcium"), CPU).network
    export_networks(
        tmp_path / "set",
        {"model": network},
        recipe=recipe,
        crops=recipe,
        role="calcium",
        data="",
        **recipe.described(),
    )
    assert CalciumModel.load(resolve(tmp_path / "set", "calcium"), CPU).window_hu == (-100.0, 400.0)
    with pytest.raises(WeightsError, match=r"window_hu \[-100.0, 400.0\]; write that into the recipe"):
        train(TINY, tmp_path / "work", given(start=str(tmp_path / "set")))
    with pytest.raises(ValueError, match="window_hu is"):
        replace(TINY, window_hu=(400.0, -100.0))


@pytest.mark.slow
def test_hard_patients_have_what_is_rare() -> None:
    recipe = replace(TINY, patients=1, first_seed=500, hard_patients=2)
    seeds = list(hard_seeds(recipe, 1))
    assert seeds == sorted(s for s in range(10_500, seeds[-1] + 1) if has_rare(s))
    named = [s.name for s in crop_sources(recipe, given())]
    assert named == ["simulated-500", *(f"simulated-{s}" for s in seeds)]
    for seed in seeds[:1]:
        grid = default_geometry(seed, size=64, slices=20)
        assert RARE & set(simulate_patient(seed, geometry=grid).facts["distractors"])


@pytest.mark.slow
def test_several_versions_of_the_simulator_have_seeds_of_their_own() -> None:
    recipe = replace(TINY, patients=2, first_seed=500, hard_patients=1, simulators=(2, 1))
    hard = [next(hard_seeds(recipe, version)) for version in (2, 1)]
    assert has_rare(hard[0], version=2)
    assert has_rare(hard[1], version=1)
    sources = crop_sources(recipe, given())
    assert [s.name for s in sources] == [
        f"simulated-{s}" for s in (500, 501, hard[0], 20_500, 20_501, hard[1])
    ]
    for wrong in ((), (1, 1)):
        with pytest.raises(ValueError, match="each named once"):
            replace(TINY, simulators=wrong)


@pytest.mark.slow
def test_each_version_draws_its_own_patients() -> None:
    recipe = replace(TINY, patients=1, first_seed=500, simulators=(2, 1))
    made = [source.make()[1] for source in crop_sources(recipe, given())]
    for label, version, seed in zip(made, (2, 1), (500, 20_500), strict=True):
        assert np.array_equal(label, simulated_crop(version, seed, recipe)[1])
        assert not np.array_equal(label, simulated_crop(3 - version, seed, recipe)[1])


def test_other_recipes_and_other_scans_are_refused(scans: Path, work: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"checkpoint\.pt belongs to another recipe"):
        train(replace(TINY, steps=9), work, given(scans))
    with pytest.raises(TrainingError, match="holds crops of other scans or settings"):
        train(replace(TINY, label_threshold=0.3), work, given(scans))
    fewer = tmp_path / "fewer"
    shutil.copytree(scans, fewer)
    (fewer / "labelsTr" / "case5.nii.gz").unlink()
    with pytest.raises(TrainingError, match="holds crops of other scans or settings"):
        train(TINY, work, given(fewer))


def test_a_damaged_checkpoint_is_named(scans: Path, work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "crops", tmp_path / "crops")
    (tmp_path / "checkpoint.pt").write_bytes(b"half")
    with pytest.raises(TrainingError, match="remove it to start anew"):
        train(TINY, tmp_path, given(scans))


def relabelled(scans: Path, folder: Path, labels: dict[str, int], keep: Sequence[int], **change: int) -> Path:
    """The scans `keep` with other label names, and without the label `drop`."""
    shutil.copytree(scans, folder)
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    for file in (folder / "labelsTr").iterdir():
        seed = int(file.name[4])
        if seed not in keep:
            file.unlink()
        elif change:
            values = scan(seed, calcium=seed < 4)[1]
            values[values == change["drop"]] = 0
            write_image(file, values, GRID)
    return folder


@pytest.mark.parametrize(
    ("labels", "keep", "change", "what"),
    [
        ({"heart": 1, "calcium": 2}, (4, 5), {}, "0 of 2 patients have calcium"),
        ({"heart": 1, "calcium": 2}, (1,), {}, "1 of 1 patients have calcium"),
        ({"heart": 1, "calcium": 2}, (1, 4), {}, "1 of 2 patients have calcium"),
        ({"heart": 1}, (0, 1), {}, "calcium is not annotated in case0"),
        ({"heart": 1, "calcium": 2}, (4, 5), {"drop": 1}, "the heart of case4 is empty"),
    ],
)
def test_data_that_cannot_be_trained_on(
    scans: Path,
    tmp_path: Path,
    labels: dict[str, int],
    keep: Sequence[int],
    change: dict[str, int],
    what: str,
) -> None:
    data = relabelled(scans, tmp_path / "data", labels, keep, **change)
    with pytest.raises(TrainingError, match=what):
        train(TINY, tmp_path / "work", given(data))


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="--data"):
        train(TINY, tmp_path, given())


def test_a_loss_that_is_not_a_number_stops_the_run() -> None:
    trainer = make_trainer(TINY, 2, device=CPU)
    image = torch.full((2, 1, 16, 64, 64), float("nan"))
    trainer.train(image, torch.zeros(image.shape, dtype=torch.uint8))
    with pytest.raises(TrainingError, match="smaller learning_rate"):
        trainer.mean_loss()


@pytest.mark.parametrize("amp", [False, True])
def test_gradients_of_the_bundled_network_are_those_of_float64(
    amp: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Against the same network in float64. In bfloat16 torch 2.13 gets those of the deepest layers wrong."""
    recipe = replace(load_recipe(BUNDLED, CalciumRecipe, role="calcium"), amp=amp)
    trainer = make_trainer(recipe, 2, device=CPU)
    assert ("float32" in caplog.text) == amp
    exact = copy.deepcopy(trainer.network).double()
    generator = torch.Generator().manual_seed(1)
    image = torch.rand((4, 1, 16, 64, 64), generator=generator)
    label = (image > 0.9).to(torch.uint8)
    trainer.train(image, label)
    logits = exact(image.double())
    loss = binary_dice_loss(logits, label.double())
    loss = loss + torch.nn.functional.binary_cross_entropy_with_logits(logits, label.double())
    loss.backward()
    assert trainer.mean_loss() == pytest.approx(float(loss.detach()), rel=1e-4)
    for (name, mine), theirs in zip(trainer.network.named_parameters(), exact.parameters(), strict=True):
        if mine.ndim > 1:  # biases before a normalisation have no gradient, only rounding
            error = float((mine.grad.double() - theirs.grad).norm() / theirs.grad.norm())
            assert error < 0.05, name


def test_dice_loss_of_perfect_and_empty_predictions() -> None:
    target = torch.zeros(1, 1, 2, 2, 2)
    target[..., 0] = 1
    assert float(binary_dice_loss((target - 0.5) * 100, target)) == pytest.approx(0, abs=1e-6)
    assert float(binary_dice_loss((0.5 - target) * 100, target)) == pytest.approx(1 - 1 / 9)
    nothing = torch.zeros_like(target)
    assert float(binary_dice_loss(nothing - 100, nothing)) == pytest.approx(0)


def test_the_papers_recipe_is_the_papers() -> None:
    """DESIGN, the method: the numbers of the paper's training."""
    recipe = load_recipe(BUNDLED.with_name("deepcac2.yml"), CalciumRecipe, role="calcium")
    assert (recipe.sampling, recipe.epochs, recipe.batch_size) == ("grid", 50, 32)
    assert (recipe.loss, recipe.learning_rate, recipe.cosine) == ("dice", 1e-4, False)
    assert (recipe.amp, recipe.validation_share, recipe.patients) == (True, 0.2, 0)


def test_recipes_are_read_strictly(tmp_path: Path) -> None:
    recipe = load_recipe(BUNDLED, CalciumRecipe, role="calcium")
    assert recipe.sampling == "random"
    with pytest.raises(WorkflowError, match="no recipe at"):
        load_recipe(tmp_path / "none.yml", CalciumRecipe, role="calcium")
    for content, what in (
        ("heart: {name: x}", "has no part 'calcium:'"),
        ("calcium: {name: x}\nhart: {}", "Perhaps you meant 'heart'"),
        ("calcium: {patient: 3}", "calcium: unknown key 'patient'. Perhaps you meant 'patients'"),
        ("- 1", "must hold"),
        ("a: [", "not valid YAML"),
    ):
        (tmp_path / "r.yml").write_text(content)
        with pytest.raises(WorkflowError, match=what):
            load_recipe(tmp_path / "r.yml", CalciumRecipe, role="calcium")
    for wrong, what in (
        ({"batch_size": 3}, "must be even"),
        ({"epochs": 3}, "give steps, not epochs"),
        ({"sampling": "grid"}, "give epochs, not steps"),
        ({"sampling": "all"}, "'grid' or 'random'"),
        ({"loss": "iou"}, "'dice' or 'dice_ce'"),
        ({"near_share": 2}, "between 0 and 1"),
        ({"log_every": 0}, "at least 1"),
    ):
        with pytest.raises(WorkflowError, match=what):
            build({"name": "x", "architecture": {}, "steps": 2, **wrong}, CalciumRecipe, where="mine.yml")


def test_crops_are_made_once(scans: Path, work: Path) -> None:
    before = {f.name: f.stat().st_mtime_ns for f in (work / "crops").glob("*.npy")}
    assert len(before) == 3 * 6
    cache = make_crops(replace(TINY, steps=99), work / "crops", given(scans))
    assert {f.name: f.stat().st_mtime_ns for f in (work / "crops").glob("*.npy")} == before
    narrow, crops = replace(TINY, window_hu=(-100.0, 400.0)), range(len(cache.names))
    assert make_batches(narrow, cache, crops).recipe.window_hu == (-100.0, 400.0)
    assert held_out_batches(narrow, cache, crops)[0].recipe.window_hu == (-100.0, 400.0)


@pytest.mark.slow
def test_backgrounds_become_crops_with_seeds_of_their_own(shared_data):
    recipe = replace(TINY, patients=2, insertions=3)
    folder = shared_data / "chest" / "Lung_Dx-A0001-B"
    sources = crop_sources(recipe, given(backgrounds=[folder]))
    assert [s.name for s in sources[2:]] == [f"inserted-Lung_Dx-A0001-B-0-{i}" for i in range(3)]
    assert {s.patient for s in sources[2:]} == {"Lung_Dx-A0001-B-0"}
    crops = [s.make() for s in sources[2:]]
    assert all(hu.shape == (58, 256, 256) for hu, _ in crops)
    assert not np.array_equal(crops[0][0], crops[1][0])
    with pytest.raises(TrainingError, match="insertions"):
        crop_sources(replace(recipe, insertions=0), given(backgrounds=[folder]))


def test_a_recipe_that_names_a_beginning_needs_it(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="begins with 'other@123'; name these weights with --start"):
        train(replace(TINY, start="other@123"), tmp_path, given())
