"""Where crops come from: simulated patients, annotated scans, and simulated calcium in real hearts.

All are cut exactly as inference cuts them: around the middle of the heart's box, by the same interpolation.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..dicom import Series
from ..errors import TrainingError
from ..evaluation.datasets import AnnotatedSource, annotated_sources
from ..imaging import Geometry, Volume
from ..imaging.crop import crop_grid
from ..imaging.heart_position import heart_depth
from ..imaging.labels import heart_labels
from ..imaging.masks import box_centre, dilated
from ..imaging.orientation import to_canonical
from ..imaging.resampling import resample
from ..pipeline.case import Case, Fact
from ..pipeline.chain import build_stage
from ..pipeline.domain import describe_scan
from ..pipeline.facts import CT, HEART
from ..pipeline.step import Context, Stage, steps
from ..pipeline.workflow import Workflow
from ..system.atomic import write_json
from ..system.foreign import read_json
from .crops import (
    ARTERY,
    KIND,
    Crop,
    CropCache,
    CropRecipe,
    CropSource,
    Named,
    build_cache,
    composed_label,
    named,
)
from .insertion import Background, FindHeart, background_series, inserted_crop, load_background
from .recipe import Inputs

log = logging.getLogger(__name__)

SIMULATED, INSERTED = "simulated-", "inserted-"
"""How the names of crops of simulated patients and of simulated calcium in real hearts begin."""
HARD_SEEDS = 10_000
"""How far above a recipe's first seed the search for its hard patients begins."""
CENTRE_APART_MM = 15.0
"""How far along x, y or z the middle of a simulated heart's box may lie from its centre of gravity; of the
first 60 seeds none lies further than 10.6 mm away."""


def crop_of(
    volume: Volume,
    heart: npt.NDArray[np.bool_],
    calcium: npt.NDArray[np.bool_],
    centre: Iterable[float],
    recipe: CropRecipe,
    *,
    other: npt.NDArray[np.bool_] | None = None,
    unsure: npt.NDArray[np.bool_] | None = None,
    names: Named = (),
) -> Crop:
    """The networks' view of a patient and its label, on the crop grid around `centre` (LPS mm).

    Args:
        volume, heart, calcium: In any orientation; masks bool (z, y, x) on the volume's grid.
        other: Calcium and metal that is known not to be coronary, where that is known.
        unsure: What the annotation is not sure about.
        names: Arteries and kinds, for crops that are `named`.
    """
    ct = to_canonical(volume.hu, volume.geometry)
    grid = crop_grid(ct.geometry, centre)
    hu = resample(ct.array, ct.geometry, grid, outside=-1024.0).round_().numpy().astype(np.int16)

    def read(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        turned = to_canonical(mask.view(np.uint8), volume.geometry).array
        return resample(turned, ct.geometry, grid, outside=0.0).numpy()

    near = dilated(heart, volume.geometry, recipe.near_heart_mm)
    label = composed_label(read, recipe, near=near, calcium=calcium, other=other, unsure=unsure, names=names)
    return (hu, label, heart_depth(read(heart))) if recipe.named else (hu, label)


def region_around(geometry: Geometry, centre: Iterable[float], margin_mm: float) -> Geometry:
    """The part of a CT's grid that the crop around `centre` can see, plus a margin."""
    grid = crop_grid(geometry, centre)
    corners = np.array([[0, 0, 0], [n - 1 for n in grid.shape]])
    index = np.sort(geometry.to_index(grid.to_lps(corners)), axis=0)
    margin = np.ceil(margin_mm / np.asarray(geometry.spacing)).astype(int)
    low = np.clip(np.floor(index[0]).astype(int) - margin, 0, None)
    high = np.minimum(np.ceil(index[1]).astype(int) + margin + 1, geometry.shape)
    return geometry.part([slice(int(a), int(b)) for a, b in zip(low, high, strict=True)])


def _shift(recipe: CropRecipe, *seed: int) -> npt.NDArray[np.float64]:
    """How far a crop lies off the heart's centre, LPS mm (x, y, z)."""
    return np.random.default_rng([*seed, 77]).normal(0.0, recipe.centre_jitter_mm, 3)


def simulated_crop(version: int, seed: int, recipe: CropRecipe) -> Crop:
    """Crop and label of one simulated patient; only the region around the heart is drawn."""
    from ..simulation import default_geometry, heart_centroid, simulate_patient

    shift = _shift(recipe, seed)
    margin_mm = 5.0 + CENTRE_APART_MM + float(np.abs(shift).max())
    drawn = region_around(default_geometry(seed, version=version), heart_centroid(seed), margin_mm)
    patient = simulate_patient(seed, geometry=drawn, version=version)
    centre = np.add(box_centre(patient.heart, drawn), shift)
    names = (*named(patient.arteries, ARTERY), *named(patient.others, KIND)) if recipe.named else ()
    return crop_of(
        patient.volume,
        patient.heart,
        patient.calcium,
        centre,
        recipe,
        other=patient.distractors,
        names=names,
    )


def heart_finder(weights: str, device: torch.device) -> FindHeart:
    """What finds the heart of a scan as the default workflow does, whatever the gates say of it.

    Its network is loaded for the first scan. It raises `TrainingError` where there is no heart.
    """

    @cache
    def stage() -> Stage:
        none: frozenset[str] = frozenset()
        whole = Workflow.load("default")
        context = Context(workflow=whole, output=Path(), device=device, allow=none, keep=none, provenance={})
        entry = next(e for e in whole.steps if HEART in steps()[e.module].writes)
        return build_stage(entry.module, replace(entry.options, weights=weights), context)

    def find(name: str, volume: Volume) -> npt.NDArray[np.bool_]:
        log.info("%s: the heart is not annotated; the heart model %r finds it", name, weights)
        heart = stage()(Case(series=Series(series_uid=""), facts={CT: volume}))[HEART].mask
        if not heart.any():
            raise TrainingError(f"no heart was found in {name}; annotate it or take the scan out of the data")
        return heart

    return find


def annotated_crop(
    source: AnnotatedSource, recipe: CropRecipe, find_heart: FindHeart, note: Path | None = None
) -> Crop:
    """Crop and label of one annotated scan, around the middle of its heart as at inference.

    What it names becomes names of a crop that is `named`.

    Args:
        note: Where to write what the scan is like, see `CropCache.scans`.

    Raises:
        TrainingError: Calcium is not annotated, there is no heart, or the scan cannot be read.
    """
    scan = source.load()
    if scan.calcium is None:
        raise TrainingError(
            f"coronary calcium is not annotated in {scan.name}; add it (an empty segment says that there is "
            "none) or take the scan out of the data"
        )
    heart = find_heart(scan.name, scan.volume) if scan.heart is None else scan.heart
    if not heart.any():
        raise TrainingError(
            f"the heart of {scan.name} is empty; annotate it or take the scan out of the data"
        )
    if note is not None:
        facts: dict[Fact[Any], Any] = {CT: scan.volume, HEART: heart_labels(heart)}
        series = Series(series_uid="") if scan.series is None else scan.series
        write_json(note, describe_scan(Case(series=series, facts=facts)))
    shift = _shift(recipe, recipe.seed, zlib.crc32(scan.name.encode()))
    centre = np.add(box_centre(heart, scan.volume.geometry), shift)
    known = [(x, group) for x, group in ((scan.arteries, ARTERY), (scan.others, KIND)) if x is not None]
    return crop_of(
        scan.volume,
        heart,
        scan.calcium,
        centre,
        recipe,
        other=None if scan.others is None else scan.others.mask,
        unsure=scan.unsure,
        names=[one for x, group in known for one in named(x, group)] if recipe.named else (),
    )


def _inserted(recipe: CropRecipe, backgrounds: Sequence[Path], find_heart: FindHeart) -> list[CropSource]:
    """Simulated calcium in the real hearts of the folders `backgrounds`."""
    found = [b for folder in backgrounds for b in background_series(folder).items()]
    if found and not recipe.insertions:
        raise TrainingError("backgrounds were given, but the recipe asks for no 'insertions'; set them")

    @lru_cache(maxsize=1)  # one after the other, and each is large
    def load(number: int) -> Background:
        return load_background(*found[number], find_heart)

    def make(number: int, seed: int) -> Crop:
        return inserted_crop(load(number), seed, recipe)

    seeds = count(recipe.seeds[recipe.simulators[0]].stop)
    return [
        CropSource(name=f"{INSERTED}{name}-{i}", patient=name, make=partial(make, number, next(seeds)))
        for number, (name, _) in enumerate(found)
        for i in range(recipe.insertions)
    ]


def hard_seeds(recipe: CropRecipe, version: int) -> Iterator[int]:
    """Seeds of a version's patients with something that is rare and hard to tell from coronary calcium."""
    from ..simulation import has_rare

    seeds = count(recipe.seeds[version].start + HARD_SEEDS)
    return islice(filter(partial(has_rare, version=version), seeds), recipe.hard_patients)


def crop_sources(recipe: CropRecipe, inputs: Inputs, notes: Path | None = None) -> list[CropSource]:
    """Every crop of a training.

    Args:
        notes: Folder for what the annotated scans are like, see `annotated_crop`.

    Raises:
        TrainingError: There are none, or two of one name.
    """
    find_heart = heart_finder(inputs.heart_weights, inputs.device)
    sources = [
        CropSource(
            name=f"{SIMULATED}{s}",
            patient=f"{SIMULATED}{s}",
            make=partial(simulated_crop, version, s, recipe),
        )
        for version, seeds in recipe.seeds.items()
        for s in chain(seeds, hard_seeds(recipe, version))
    ]
    for folder in inputs.data:
        for scan in annotated_sources(folder):
            note = None if notes is None else notes / f"{len(sources):06d}.scan.json"
            make = partial(annotated_crop, scan, recipe, find_heart, note)
            sources.append(CropSource(name=scan.name, patient=scan.patient, make=make))
    sources += _inserted(recipe, inputs.backgrounds, find_heart)
    if not sources:
        raise TrainingError(
            "there is nothing to train on; name a folder of annotated scans (--data), or set 'patients' in "
            "the recipe"
        )
    names = [s.name for s in sources]
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise TrainingError(f"two scans are named {twice!r}; rename one of them")
    return sources


def make_crops(recipe: CropRecipe, folder: Path, inputs: Inputs) -> CropCache:
    """Cut all crops of a training into `folder`, or go on cutting; see `crop_sources` and `build_cache`."""
    settings: dict[str, object] = {k: getattr(recipe, k) for k in ("centre_jitter_mm", "label_threshold")}
    versions = list(recipe.simulators)
    settings["simulator"] = versions[0] if len(versions) == 1 else versions
    if recipe.named:
        settings["named"] = True
    settings["heart_margin_mm"] = recipe.near_heart_mm  # its former name: older crops serve on
    settings["centre"] = "middle of the heart's box"  # crops cut around another point are others
    settings["heart_weights"] = inputs.heart_weights if inputs.data or inputs.backgrounds else ""
    cache = build_cache(crop_sources(recipe, inputs, folder), folder, settings=settings)
    notes = sorted(folder.glob("[0-9]*.scan.json"))
    return replace(cache, scans=tuple(read_json(note, advice="remove the crops") for note in notes))


def crop_origin(recipe: CropRecipe, cache: CropCache) -> str:
    """What the crops of a training show, in words."""
    ranges = recipe.seeds.values()
    seeds = " and ".join(f"{r.start} to {r.stop - 1}" for r in ranges)
    inserted = sum(name.startswith(INSERTED) for name in cache.names)
    scans = inserted // max(recipe.insertions, 1)
    counts = {
        f"simulated chests of this project (seeds {seeds})": recipe.patients * len(ranges),
        f"insertions of simulated calcium into {scans} real scans without calcium": inserted,
        "simulated chests with a stent, clips or calcified pericardium": recipe.hard_patients * len(ranges),
        "annotated scans": len(cache.names)
        - (recipe.patients + recipe.hard_patients) * len(ranges)
        - inserted,
    }
    return ", ".join(f"{n} {what}" for what, n in counts.items() if n)
