"""Compare the chain with one made of the usual programs: seconds per stage, masks and scores.

Usage: ``python benchmarks/stock_chain.py [--series N] [--slices N] [--threads N]``

Both chains work on the same simulated series with the same bundled weights, on the CPU and on the same cores.
Stock is

- DICOM to NIfTI by plastimatch or dcm2niix; where both are installed both are timed and the faster one
  counts. dcm2niix stores the rows the other way round, which nnU-Net would not notice: SimpleITK turns them
  back, and that counts as well,
- heart by ``nnUNetv2_predict``: one process a series, as where every step is a command, and for comparison
  one process for all series,
- calcium by MONAI's ``sliding_window_inference`` over all patches of the crop that SimpleITK resamples; in
  memory, the network loaded before; then the margin around the heart as in `config/default.yml`,
- score by a loop over slices and lesions,
- DICOM SEG by dcmqi's ``itkimage2segimage``.

Between the programs lie ``.nii.gz`` files, as in MHub; ``--ending .nii`` spares the stock chain the packing.

Ours is the chain in memory, models loaded, timed after a first series; it includes finding the series in its
folder. Each stage is the median over the series, a whole series the sum of its stages. At the end
``deepcac2 run`` over all series, as a user gives it, is timed from its start to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from scipy.ndimage import maximum
from skimage.measure import label

from deepcac2.dicom import discover
from deepcac2.imaging import Geometry
from deepcac2.imaging.crop import CANDIDATE_HU, CROP_SHAPE, PATCH_SHAPE, crop_grid
from deepcac2.imaging.heart_position import CHANNELS, heart_box, heart_depth, position
from deepcac2.imaging.masks import bounding_box, box_centre, dilated
from deepcac2.models.calcium.network import THRESHOLD, CalciumModel, normalise
from deepcac2.models.calcium.step import DeepCACRunnerOptions
from deepcac2.models.heart.network import HeartModel
from deepcac2.pipeline.case import Case
from deepcac2.pipeline.chain import Chain, build_chain
from deepcac2.pipeline.facts import CALCIUM, CT, HEART, SCORE
from deepcac2.pipeline.gates import gates
from deepcac2.pipeline.operating import operating_point
from deepcac2.pipeline.workflow import Workflow
from deepcac2.weights import WeightSet, resolve

PACKAGES = {
    "plastimatch": "Debian package plastimatch",
    "dcm2niix": "Debian package dcm2niix",
    "nnUNetv2_predict": "PyPI package nnunetv2",
    "itkimage2segimage": "PyPI package dcmqi",
}
CONVERTERS = ("plastimatch", "dcm2niix")
CPU = torch.device("cpu")
ALLOWED = frozenset(code for code, known in gates().items() if known.overridable)
"""No simulated series is turned away: thin slices are to be compared, too."""


# Programs


def program(name: str) -> str | None:
    """Path of a program, that of this environment first."""
    own = str(Path(sys.executable).parent)
    return shutil.which(name, path=os.pathsep.join([own, os.environ.get("PATH", "")]))


def missing_programs() -> list[str]:
    """What has to be installed first, in words."""
    lacking = {name: f"{name} ({text})" for name, text in PACKAGES.items() if program(name) is None}
    needed = [text for name, text in lacking.items() if name not in CONVERTERS]
    if set(CONVERTERS) <= set(lacking):
        needed.append(" or ".join(lacking[name] for name in CONVERTERS))
    return needed


def call(name: str, *arguments: str | Path, **environment: str) -> None:
    """Run a program as a process of its own; its output is shown only when it fails."""
    done = subprocess.run(
        [program(name) or name, *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name} failed ({done.returncode}):\n{done.stdout[-3000:]}")


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Seconds by stage, one entry a series."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.add(stage, time.perf_counter() - started)

    def add(self, stage: str, value: float) -> None:
        self.seconds.setdefault(stage, []).append(value)

    def median(self, stage: str) -> float:
        return statistics.median(self.seconds[stage])


# The stock chain


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a chain found; arrays (z, y, x) on the CT's grid.

    Attributes:
        hu: int16, HU.
        geometry: Of the arrays.
        heart, calcium: bool.
        score: Agatston.
    """

    hu: np.ndarray
    geometry: Geometry
    heart: np.ndarray
    calcium: np.ndarray
    score: float

    @property
    def counted(self) -> np.ndarray:
        """The calcium that counts: bool (z, y, x)."""
        return self.calcium & (self.hu >= CANDIDATE_HU)


@dataclass(frozen=True, kw_only=True)
class Nnunet:
    """Heart weights as a folder that nnU-Net's own commands take.

    Attributes:
        results: nnU-Net's folder of results.
        ending: Of the images and masks, ``.nii.gz`` or ``.nii``.
        arguments: What names the network to ``nnUNetv2_predict``.
        threads: For its export of the masks.
    """

    results: Path
    ending: str
    arguments: tuple[str, ...]
    threads: int

    @classmethod
    def write(cls, weights: WeightSet, results: Path, *, ending: str, threads: int) -> Nnunet:
        """Write the plans and checkpoints of a set: the way back from `weights.convert_nnunet_v2`."""
        plans = json.loads((weights.path / "plans.json").read_text())
        labels = json.loads((weights.path / "dataset.json").read_text()) | {"file_ending": ending}
        dataset, identifier = plans["dataset_name"], plans["plans_name"]
        configuration = weights.metadata["configuration"]
        folder = results / dataset / f"nnUNetTrainer__{identifier}__{configuration}"
        folder.mkdir(parents=True)
        for name, content in (("plans.json", plans), ("dataset.json", labels)):
            (folder / name).write_text(json.dumps(content))
        folds = sorted(Path(file).stem for file in weights.files if file.endswith(".safetensors"))
        for fold, network in zip(folds, HeartModel.load(weights, CPU).networks, strict=True):
            (folder / fold).mkdir()
            checkpoint = {
                "network_weights": network.state_dict(),
                "trainer_name": "nnUNetTrainer",
                "init_args": {"configuration": configuration},
                "inference_allowed_mirroring_axes": tuple(weights.metadata["mirror_axes"]) or None,
            }
            torch.save(checkpoint, folder / fold / "checkpoint_final.pth")
        numbers = [fold.removeprefix("fold_") for fold in folds]
        names = ("-d", dataset, "-p", identifier, "-c", configuration, "-f", *numbers)
        return cls(results=results, ending=ending, arguments=names, threads=threads)

    def predict(self, images: Path, masks: Path) -> None:
        """Segment all ``<case>_0000`` images of a folder, with no more helpers than a series needs."""
        environment = {f"nnUNet_{name}": str(self.results) for name in ("raw", "preprocessed", "results")}
        environment["nnUNet_def_n_proc"] = str(self.threads)
        more = ("-device", "cpu", "-npp", "1", "-nps", "1", "--disable_progress_bar")
        call("nnUNetv2_predict", "-i", images, "-o", masks, *self.arguments, *more, **environment)


def to_nifti(converter: str, source: Path, path: Path) -> None:
    """A folder of DICOM as one NIfTI whose rows and slices run as in the DICOM files."""
    if converter == "plastimatch":
        call("plastimatch", "convert", "--input", source, "--output-img", path)
        return
    folder = path.parent / "dcm2niix"
    folder.mkdir()
    packed = "y" if path.suffix == ".gz" else "n"
    call("dcm2niix", "-z", packed, "-b", "n", "-f", "ct", "-o", folder, source)
    (found,) = folder.glob("*.nii*")
    sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(found)), "LPS"), str(path))


def geometry_of(image: sitk.Image) -> Geometry:
    """The grid of an image whose axes are those of the patient (plastimatch, or turned so)."""
    if not np.allclose(image.GetDirection(), np.eye(3).ravel(), atol=1e-4):
        raise SystemExit("only series whose axes are the patient's are compared")
    z, y, x = sitk.GetArrayViewFromImage(image).shape
    dx, dy, dz = image.GetSpacing()
    return Geometry(shape=(z, y, x), spacing=(dz, dy, dx), origin=image.GetOrigin())


def dense_calcium(
    ct: sitk.Image, geometry: Geometry, heart: np.ndarray, model: CalciumModel, options: DeepCACRunnerOptions
) -> np.ndarray:
    """Calcium bool (z, y, x) by MONAI over every patch of the crop, resampled by SimpleITK."""
    from monai.inferers import sliding_window_inference

    grid = crop_grid(geometry, box_centre(heart, geometry))
    crop = sitk.Image(*CROP_SHAPE[::-1], sitk.sitkFloat32)
    crop.SetSpacing(grid.spacing[::-1])
    crop.SetOrigin(grid.origin)
    hu = sitk.Resample(ct, crop, sitk.Transform(), sitk.sitkLinear, -1024.0, sitk.sitkFloat32)
    values = normalise(torch.from_numpy(sitk.GetArrayFromImage(hu)), rescale_to=model.rescale_to)[None]
    if getattr(model.network, "placed", False):
        mask = sitk.GetImageFromArray(heart.astype(np.float32))
        mask.CopyInformation(ct)
        share = sitk.Resample(mask, crop, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32)
        depth = heart_depth(sitk.GetArrayFromImage(share))
        values = torch.cat([values, torch.from_numpy(position(depth, heart_box(depth)))])

    def answer(patches: torch.Tensor) -> torch.Tensor:
        logits = model.network(patches)
        return torch.sigmoid(logits[0] if isinstance(logits, tuple) else logits)

    with torch.inference_mode():
        probability: Any = sliding_window_inference(
            values[None],
            roi_size=PATCH_SHAPE,
            sw_batch_size=model.batch_size,
            predictor=answer,
            overlap=0.5,
            mode="constant",
        )
    found = sitk.GetImageFromArray(probability[0, 0].numpy())
    found.CopyInformation(crop)
    back = sitk.Resample(found, ct, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    probability = sitk.GetArrayFromImage(back)
    mask = (probability >= THRESHOLD) & dilated(heart, geometry, options.heart_margin_mm)
    if mask.any():
        box = bounding_box(mask)
        lesions = label(mask[box] & (sitk.GetArrayViewFromImage(ct)[box] >= CANDIDATE_HU), connectivity=3)
        highest = maximum(probability[box], lesions, np.arange(lesions.max() + 1))
        mask[box] &= (lesions == 0) | (highest[lesions] >= options.peak_probability)
    return mask


def loop_score(hu: np.ndarray, calcium: np.ndarray, spacing: tuple[float, float, float]) -> float:
    """Agatston score, rule ``agatston``, one slice and one lesion after the other.

    Args:
        hu: int16 (z, y, x), HU.
        calcium: bool (z, y, x).
        spacing: mm (z, y, x).
    """
    total = 0.0
    for z in range(len(hu)):
        lesions = label(calcium[z] & (hu[z] >= 130), connectivity=2)
        for number in range(1, lesions.max() + 1):
            lesion = lesions == number
            area = lesion.sum() * spacing[1] * spacing[2]
            if area < 1.0:
                continue
            peak = hu[z][lesion].max()
            weight = 1 + (peak >= 200) + (peak >= 300) + (peak >= 400)
            total += float(area * weight * spacing[0] / 3.0)
    return total


def write_seg(
    source: Path, folder: Path, like: sitk.Image, heart: np.ndarray, calcium: np.ndarray, *, ending: str
) -> None:
    """Both masks as NIfTI and from there into a DICOM SEG by dcmqi."""
    codes = (
        ("heart", heart, ("91723000", "Anatomical Structure"), ("80891009", "Heart")),
        (
            "calcium",
            calcium,
            ("49755003", "Morphologically Abnormal Structure"),
            ("18115005", "Pathologic calcification"),
        ),
    )
    files, attributes = [], []
    for name, mask, category, kind in codes:
        if not mask.any():
            continue  # dcmqi takes no empty segment
        image = sitk.GetImageFromArray(mask.astype(np.uint8))
        image.CopyInformation(like)
        files.append(folder / f"{name}{ending}")
        sitk.WriteImage(image, str(files[-1]))
        segment: dict[str, Any] = {"labelID": 1, "SegmentDescription": name}
        segment |= {"SegmentAlgorithmType": "AUTOMATIC", "SegmentAlgorithmName": "stock"}
        for key, (value, meaning) in (("Category", category), ("Type", kind)):
            segment[f"SegmentedProperty{key}CodeSequence"] = {
                "CodeValue": value,
                "CodingSchemeDesignator": "SCT",
                "CodeMeaning": meaning,
            }
        attributes.append([segment])
    meta: dict[str, Any] = {
        "ContentCreatorName": "stock",
        "SeriesDescription": "Segmentation",
        "SeriesNumber": "300",
    }
    meta |= {"InstanceNumber": "1", "segmentAttributes": attributes}
    path = folder / "stock.seg.dcm"
    (folder / "meta.json").write_text(json.dumps(meta))
    call(
        "itkimage2segimage", "--inputImageList", ",".join(map(str, files)),
        "--inputMetadata", folder / "meta.json", "--inputDICOMDirectory", source, "--outputDICOM", path,
    )  # fmt: skip
    if not path.is_file():
        raise SystemExit("itkimage2segimage wrote no SEG")


def run_stock(
    source: Path,
    scratch: Path,
    *,
    nnunet: Nnunet,
    model: CalciumModel,
    options: DeepCACRunnerOptions,
    clock: Clock,
) -> Result:
    """One series through the stock chain.

    Args:
        source: Folder of the CT's DICOM.
        scratch: Empty folder; keeps ``images/ct_0000.nii.gz`` (or ``.nii``).
    """
    images, masks = scratch / "images", scratch / "masks"
    images.mkdir()
    converted = []
    for converter in filter(program, CONVERTERS):
        folder = scratch / converter
        folder.mkdir()
        converted.append(folder / f"ct{nnunet.ending}")
        with clock(converter):
            to_nifti(converter, source, converted[-1])
    image = converted[0].rename(images / f"ct_0000{nnunet.ending}")
    with clock("heart"):
        nnunet.predict(images, masks)
    with clock("calcium"):
        ct = sitk.ReadImage(str(image))
        geometry = geometry_of(ct)
        heart = sitk.GetArrayFromImage(sitk.ReadImage(str(masks / f"ct{nnunet.ending}"))) == 1
        calcium = dense_calcium(ct, geometry, heart, model, options)
    hu = sitk.GetArrayFromImage(ct).astype(np.int16)
    with clock("score"):
        total = loop_score(hu, calcium, geometry.spacing)
    with clock("seg"):
        write_seg(source, scratch, ct, heart, calcium, ending=nnunet.ending)
    return Result(hu=hu, geometry=geometry, heart=heart, calcium=calcium, score=total)


# Our chain


def run_ours(source: Path, chain: Chain, clock: Clock) -> Result:
    """One series through our chain, finding it in its folder included."""
    started = time.perf_counter()
    (series,) = discover(source, allow=ALLOWED).series
    found = time.perf_counter() - started
    case = chain(Case(series=series))
    for stage, value in {"discover": found, **case.timings}.items():
        clock.add(stage, value)
    return result_of(case)


def result_of(case: Case) -> Result:
    """Of a case that has been scored."""
    if SCORE not in case:
        raise SystemExit("our chain did not score the series")
    return Result(
        hu=case[CT].hu,
        geometry=case[CT].geometry,
        heart=case[HEART].mask,
        calcium=case[CALCIUM].mask,
        score=case[SCORE].total,
    )


# Comparison


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def comparison(name: str, stock: Result, ours: Result) -> list[str]:
    """A row: the heart, the counted calcium, and the score."""
    if not np.array_equal(stock.hu, ours.hu):
        raise SystemExit("the converter changed the CT: nothing can be compared")
    centres = [np.array(box_centre(r.heart, r.geometry)) for r in (stock, ours)]
    either, differing = stock.counted | ours.counted, stock.counted ^ ours.counted
    return [
        name,
        f"{dice(stock.heart, ours.heart):.4f}",
        f"{np.linalg.norm(centres[0] - centres[1]):.2f}",
        f"{int(differing.sum())} of {int(either.sum())}",
        f"{stock.score:.2f}",
        f"{ours.score:.2f}",
    ]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


STAGES = (
    ("heart", "heart (nnUNetv2_predict)", ("HeartRunner",)),
    ("calcium", "calcium (MONAI, all patches)", ("DeepCACRunner",)),
    ("score", "score (loop per lesion)", ("AGSCalculator",)),
    ("seg", "DICOM SEG (itkimage2segimage)", ("DSegConverter",)),
)
READING = ("discover", "DicomImporter", "NiftiConverter")
REPORT = ("ReportExporter", "DataOrganizer")


def time_table(stock: Clock, ours: Clock, together: float, run: float, series: int) -> str:
    """Medians of both chains, seconds.

    Args:
        together: A series of one nnU-Net process for all of them.
        run: A series of ``deepcac2 run`` over all of them, start and table included.
    """

    def line(text: str, theirs: float | None, mine: float | None) -> list[str]:
        factor = f"{theirs / mine:.1f}" if theirs and mine else ""
        return [text, *("" if v is None else f"{v:.3f}" for v in (theirs, mine)), factor]

    mine = {name: ours.median(name) for name in ours.seconds}
    converters = sorted((stock.median(c), c) for c in CONVERTERS if c in stock.seconds)
    reading = sum(mine[name] for name in READING)
    rows = [line(f"reading ({converters[0][1]})", converters[0][0], reading)]
    rows += [line(f"reading ({c}), not counted", seconds, None) for seconds, c in converters[1:]]
    rows += [line(text, stock.median(key), sum(mine[m] for m in own)) for key, text, own in STAGES]
    rows.append(line("report and preview", None, sum(mine[name] for name in REPORT)))
    theirs, own = converters[0][0] + sum(stock.median(key) for key, _, _ in STAGES), sum(mine.values())
    rows.append(line("**one series**", theirs, own))
    if series > 1:
        once = theirs - stock.median("heart") + together
        rows.append(line(f"one series, nnUNetv2_predict once for all {series}", once, own))
        rows.append(line(f"one series of `deepcac2 run` over all {series}", once, run))
    return table(["stage", "stock, s", "ours, s", "factor"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--series", type=int, default=3, help="how many (default: %(default)s)")
    parser.add_argument("--slices", type=int, default=140, help="of 512 x 512 each (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=2, help="CPU cores for either chain (default: %(default)s)"
    )
    parser.add_argument(
        "--ending", choices=(".nii.gz", ".nii"), default=".nii.gz", help="of files (default: %(default)s)"
    )
    parser.add_argument(
        "--if-installed", action="store_true", help="say what is missing and leave it at that"
    )
    arguments = parser.parse_args()
    if lacking := missing_programs():
        print(f"stock_chain.py needs {', '.join(lacking)}: not measured", file=sys.stderr)
        return 0 if arguments.if_installed else 1
    if hasattr(os, "sched_setaffinity"):  # processes inherit it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    torch.set_num_threads(arguments.threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(arguments.threads)

    with tempfile.TemporaryDirectory() as name:
        measure(
            Path(name),
            series=arguments.series,
            slices=arguments.slices,
            threads=arguments.threads,
            ending=arguments.ending,
        )
    return 0


def measure(scratch: Path, *, series: int, slices: int, threads: int, ending: str) -> None:
    """Simulate, run both chains, print both tables."""
    source = scratch / "in"
    simulate = [sys.executable, "-m", "deepcac2", "simulate", str(source), "--seed", "11"]
    simulate += ["--patients", str(series), "--slices", str(slices)]
    subprocess.run(simulate, check=True, stdout=subprocess.DEVNULL)
    folders = sorted(path / "ct" for path in source.iterdir() if path.is_dir())

    workflow = Workflow.load("default")
    heart_weights, calcium_weights = resolve("bundled", "heart"), resolve("bundled", "calcium")
    point = operating_point(calcium_weights, heart_margin_mm=None, peak_probability=None)
    options = DeepCACRunnerOptions(**point.values)
    chain = build_chain(workflow, output=scratch / "ours", device=CPU, allow=ALLOWED)
    nnunet = Nnunet.write(heart_weights, scratch / "nnunet", ending=ending, threads=threads)
    plain = CalciumModel.load(calcium_weights, CPU)  # without the memory layout that ours prefers
    plain.network = plain.network.to(memory_format=torch.contiguous_format)

    # Warm: programs in the page cache, networks run once.
    call("nnUNetv2_predict", "-h", nnUNet_results=str(nnunet.results))
    channels = 1 + CHANNELS * bool(getattr(plain.network, "placed", False))
    plain.network(torch.zeros(1, channels, *PATCH_SHAPE))
    run_ours(folders[0], chain, Clock())

    clock, ours_clock = Clock(), Clock()
    all_images, rows = scratch / "all", []
    all_images.mkdir()
    for number, folder in enumerate(folders, start=1):
        ours = run_ours(folder, chain, ours_clock)
        work = scratch / f"stock-{number}"
        work.mkdir()
        stock = run_stock(folder, work, nnunet=nnunet, model=plain, options=options, clock=clock)
        rows.append(comparison(str(number), stock, ours))
        (work / "images" / f"ct_0000{ending}").rename(all_images / f"{number}_0000{ending}")
        shutil.rmtree(work)
    started = time.perf_counter()
    nnunet.predict(all_images, scratch / "all-masks")
    together = (time.perf_counter() - started) / series
    started = time.perf_counter()
    call(sys.executable, "-m", "deepcac2", "run", source, scratch / "run", "--quiet")
    run = (time.perf_counter() - started) / series

    print(f"{series} series of {slices} slices of 512 x 512, {threads} CPU cores, {ending} files\n")
    print(time_table(clock, ours_clock, together, run, series))
    head = ["series", "heart Dice", "centres apart, mm", "counted voxels that differ", "score, stock", "ours"]
    print(f"\n{table(head, rows)}")


if __name__ == "__main__":
    raise SystemExit(main())
