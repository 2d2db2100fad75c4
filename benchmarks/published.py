"""Measure the published network: its authors' way, the workflow `deepcac2`, and the workflow `default`.

Usage: ``python benchmarks/published.py [FOLDER ...] [--device cpu] [--threads 2]``

Nobody here has the published weights, so the network has random ones of the published widths, whose last bias
makes about 1 % of what it sees calcium; how long a patch takes does not hang on them, how many patches are
run does so a little. Each folder holds DICOM; without one, a patient is simulated. The heart is found once,
by the bundled weights, and then timed are

- the published way, written out by itself in ``tests/models/test_published.py``: the whole CT resampled with
  SimpleITK, every patch that holds heart, one by one, in 32 bits;
- the calcium stage of the workflow ``deepcac2``, which gives the same mask;
- the calcium stage of the workflow ``default`` with that network, which counts from 130 HU on near the heart.

Prints a Markdown table: of ``--rounds N`` the medians, every way in turn, so that what else the machine
does hits all alike; on a busy one believe the seconds of cores and not the clock. ``--crop Z,Y,X`` lays a
smaller crop, of which fewer patches are run. ``--ways`` leaves some out; ``--half`` adds ``default`` in half
precision, for a GPU, and ``--dense`` without skipping anything. Both say in how many counted voxels their
mask is another.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from deepcac2.dicom import Series, discover, read_series
from deepcac2.imaging.crop import CANDIDATE_HU, Patches
from deepcac2.imaging.masks import box_centre
from deepcac2.models.calcium.network import CalciumModel, crop_grid, normalise, to_crop
from deepcac2.models.calcium.step import FindCalcium
from deepcac2.models.unet3d import PUBLISHED_WIDTHS, build
from deepcac2.pipeline.case import Case
from deepcac2.pipeline.chain import build_stage, choose_device, counted_from, describe_device
from deepcac2.pipeline.facts import CALCIUM, CALCIUM_RUN, CT, HEART
from deepcac2.pipeline.step import Context
from deepcac2.pipeline.workflow import Workflow
from deepcac2.scoring import score
from deepcac2.weights import WeightSet, convert_deepcac2, load_tensors

TESTS = Path(__file__).resolve().parents[1] / "tests"
WAYS = ("published", "deepcac2", "default")
POSITIVE = 0.01
"""Share of the voxels of a heart that the network calls calcium."""


def of_tests(path: str) -> ModuleType:
    """A module of the tests, which are no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, TESTS / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_tensors(widths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Random ones that keep the size of what goes through them (He et al. 2015, arXiv:1502.01852)."""
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, shape in of_tests("published.py").published_shapes(widths).items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(1)
        elif len(shape) == 5:
            raised = name.startswith("ups") and ".conv." not in name
            into = shape[0] if raised else shape[1] * shape[2] * shape[3] * shape[4]
            tensors[name] = torch.randn(shape, generator=generator) * (2 / into) ** 0.5
        else:
            is_one = name.endswith("running_var") or (".conv." in name and name.endswith("weight"))
            tensors[name] = torch.full(shape, float(is_one))
    return tensors


def make_set(folder: Path, widths: tuple[int, ...], case: Case, patches: Patches) -> WeightSet:
    """A converted set of random tensors, whose last bias is right for the middle of this heart."""
    tensors = random_tensors(widths)
    volume = case[CT]
    grid = crop_grid(volume.geometry, box_centre(case[HEART].mask, volume.geometry), patches.crop_shape)
    hu = to_crop(volume.hu, volume.geometry, grid, device=torch.device("cpu"))
    middle = tuple(
        slice((n - p) // 2, (n + p) // 2) for n, p in zip(hu.shape, patches.patch_shape, strict=True)
    )
    patch = normalise(hu, rescale_to="crop")[middle].permute(2, 1, 0)
    with torch.inference_mode():
        said = build(tensors)(patch[None, None].contiguous()).numpy()
    tensors["final_conv.bias"] = tensors["final_conv.bias"] - float(np.quantile(said, 1 - POSITIVE))
    torch.save(tensors, folder / "random.pt")
    stated = {name: list(shape) for name, shape in asdict(patches).items()}
    return convert_deepcac2(folder / "random.pt", folder / "set", **stated)


def stage(workflow: Workflow, module: str, device: torch.device) -> Callable[[Case], Case]:
    """A stage of a workflow, as a run builds it."""
    context = Context(
        workflow=workflow,
        output=Path(),
        device=device,
        allow=frozenset(),
        keep=frozenset(),
        provenance={},
        counted_from=counted_from(workflow),
    )
    return build_stage(module, workflow.options(module), context)


def scans(folders: list[Path], small: bool) -> Iterator[tuple[str, Case]]:
    """Each series with its CT."""
    if not folders:
        from deepcac2.simulation import default_geometry, simulate_patient

        geometry = default_geometry(11, size=256, slices=90) if small else None
        volume = simulate_patient(11, geometry=geometry).volume
        yield "simulated (seed 11)", Case(series=Series(series_uid="1"), facts={CT: volume})
    for folder in folders:
        for series in discover(folder).series:
            if series.modality == "CT":
                yield folder.name, Case(series=series, facts={CT: read_series(series).volume})


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What a call gives, and its seconds: by the clock, and of all cores together. A GPU is warm then."""
    if torch.cuda.is_available():
        work()
    clock, cores = time.perf_counter(), time.process_time()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - clock, time.process_time() - cores


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, help="DICOM (default: a simulated patient)")
    parser.add_argument("--device", default="cpu", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU cores (default: %(default)s)")
    parser.add_argument("--widths", default=",".join(map(str, PUBLISHED_WIDTHS)), help="default: %(default)s")
    parser.add_argument("--ways", default=",".join(WAYS), help="default: %(default)s")
    parser.add_argument(
        "--rounds", type=int, default=1, help="how often each way is run (default: %(default)s)"
    )
    parser.add_argument("--crop", help="voxels of the crop, Z,Y,X (default: 58,256,256, as published)")
    parser.add_argument("--half", action="store_true", help="also default in half precision, on a GPU")
    parser.add_argument("--small", action="store_true", help="a small scan and crop, to try this script")
    parser.add_argument("--dense", action="store_true", help="also default without skipping (slow)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    widths = tuple(map(int, arguments.widths.split(",")))
    say = sys.stdout.write
    say(f"{describe_device(device)}, widths {widths}\n\n")
    say(
        "| scan | way | patches | s | s of cores | times faster (s of cores) | score |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    find_heart = stage(Workflow.load("default"), "HeartRunner", device)
    patches = Patches(crop_shape=(32, 128, 128)) if arguments.small else Patches()
    if arguments.crop:
        z, y, x = map(int, arguments.crop.split(","))
        patches = Patches(crop_shape=(z, y, x))
    for name, case in scans(arguments.folders, arguments.small):
        case = find_heart(case)
        if case.get(HEART) is None:
            say(f"| {name} | no heart: {case.stop.reason if case.stop else ''} | | | | | |\n")
            continue
        with tempfile.TemporaryDirectory() as folder:
            weights = make_set(Path(folder), widths, case, patches)
            measure(name, case, weights, patches, device, arguments)
    say(f"\nlargest memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB\n")
    return 0


def measure(
    name: str,
    case: Case,
    weights: WeightSet,
    patches: Patches,
    device: torch.device,
    arguments: argparse.Namespace,
) -> None:
    """One line of the table for each way."""
    volume, heart = case[CT], case[HEART].mask
    taken: dict[str, list[tuple[float, float]]] = {}
    masks: dict[str, np.ndarray] = {}
    patches_run: dict[str, int] = {}
    rules: dict[str, str] = {}

    def once(way: str, work: Callable[[], tuple[np.ndarray, int]]) -> None:
        (masks[way], patches_run[way]), clock, cores = timed(work)
        taken.setdefault(way, []).append((clock, cores))
        sys.stderr.write(f"{name}, {way}: {clock:.1f} s, {cores:.1f} s of cores\n")

    def compared(way: str, other: str, where: np.ndarray) -> None:
        if way in masks and other in masks:
            odd = int(((masks[way] != masks[other]) & where).sum())
            sys.stdout.write(f"| | {way}: voxels unlike {other}, of {int(where.sum())} | {odd} | | | | |\n")

    works: dict[str, Callable[[], tuple[np.ndarray, int]]] = {}
    ways = arguments.ways.split(",")
    if "published" in ways:
        tensors = load_tensors(weights, "model.safetensors")
        described = of_tests("published.py").Described({k: t.to(device) for k, t in tensors.items()})
        literal = of_tests("models/test_published.py").slow_published

        def as_published() -> tuple[np.ndarray, int]:
            network = OneByOne(described, device)
            return literal(volume, heart, network, patches), len(network.seen)

        works["published"], rules["published"] = as_published, "deepcac2"
    modules = {"deepcac2": "DeepCAC2Runner", "default": "DeepCACRunner"}
    for way in ["deepcac2", "default", *(["default, half"] if arguments.half else [])]:
        base = way.partition(",")[0]
        if base not in ways:
            continue
        module = modules[base]
        workflow = Workflow.load(base).with_options(
            module, weights=str(weights.path), half_precision="half" in way
        )
        find = stage(workflow, module, device)
        works[way], rules[way] = partial(found_by, find, case), workflow.options("AGSCalculator").rule
    if arguments.dense:
        dense = FindCalcium(model=CalciumModel.load(weights, device), weights=weights, lowest_hu=None)
        works["default, dense"], rules["default, dense"] = partial(found_by, dense, case), "agatston"
    for _ in range(arguments.rounds):
        for way, work in works.items():
            once(way, work)
    first = next(iter(works))
    for way in works:
        clock, cores = np.median(taken[way], axis=0)
        sooner = np.median([a[1] / b[1] for a, b in zip(taken[first], taken[way], strict=True)])
        total = score(volume, masks[way], rule=rules[way]).total
        sys.stdout.write(
            f"| {name} | {way} | {patches_run[way]} | {clock:.1f} | {cores:.1f} | {sooner:.1f} | "
            f"{total:g} ({rules[way]}) |\n"
        )
    compared("deepcac2", "published", np.ones_like(heart))
    counted = volume.hu >= CANDIDATE_HU
    compared("default, half", "default", counted)
    compared("default", "default, dense", counted)
    sys.stdout.flush()


def found_by(find: Callable[[Case], Case], case: Case) -> tuple[np.ndarray, int]:
    """Mask of the calcium, and patches that were run."""
    found = find(case)
    return found[CALCIUM].mask, found[CALCIUM_RUN]["patches_run"]


class OneByOne(torch.nn.Module):
    """The network on its device for patches that lie on the CPU; remembers which it has seen."""

    def __init__(self, network: torch.nn.Module, device: torch.device) -> None:
        super().__init__()
        self.network, self.device = network, device
        self.seen: set[bytes] = set()

    def forward(self, patch: torch.Tensor) -> torch.Tensor:
        self.seen.add(patch.numpy().tobytes())
        result: torch.Tensor = self.network(patch.to(self.device)).cpu()
        return result


if __name__ == "__main__":
    raise SystemExit(main())
