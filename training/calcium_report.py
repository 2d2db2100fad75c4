"""The final look at a trained calcium network: held-out patients through the real predictor, and a page.

``evaluation/README.md`` shows the loss, the Dice and calcium volume of every held-out crop, and pictures of
a few. Network, crops and predictor are those of `models.calcium`; nothing is computed differently here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from ..imaging import Geometry, Volume
from ..models.calcium.network import CalciumModel, Window
from ..models.crop import CROP_SHAPE, CROP_SPACING, WINDOW_HU
from ..scoring import score
from ..system.atomic import atomic_path, write_whole
from .monitor import read_log
from .patches import CALCIUM, CropCache

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BoolArray = npt.NDArray[np.bool_]

PICTURES = 4
"""Crops shown."""
CROP_GEOMETRY = Geometry(shape=CROP_SHAPE, spacing=CROP_SPACING, origin=(0.0, 0.0, 0.0))
"""The crop's grid by itself: its middle is the heart's centre, so the predictor crops just this again."""


@dataclass(frozen=True, kw_only=True)
class CropResult:
    """One held-out crop.

    Attributes:
        name: Of the crop.
        dice: Of the calcium over the whole crop; None where there is none in truth and prediction.
        dice_near: The same, without what was found away from the heart.
        true_mm3, found_mm3: What counts by the rule `agatston`, mm³; found: in the heart or near it.
        found: bool (58, 256, 256), everything that was found.
    """

    name: str
    dice: float | None
    dice_near: float | None
    true_mm3: float
    found_mm3: float
    found: BoolArray = field(repr=False)


def evaluate_crop(model: CalciumModel, cache: CropCache, number: int) -> CropResult:
    """Run the predictor over one crop of a cache and compare with its label."""
    hu, label = np.array(cache.hu[number]), np.asarray(cache.label[number])
    middle = CROP_GEOMETRY.to_lps([(n - 1) / 2 for n in CROP_SHAPE])
    centre = (float(middle[0]), float(middle[1]), float(middle[2]))
    volume = Volume(hu=hu, geometry=CROP_GEOMETRY)
    found = model.predict(volume, centre).mask
    truth, near = label == CALCIUM, label > 0
    return CropResult(
        name=cache.names[number],
        dice=_dice(found, truth),
        dice_near=_dice(found & near, truth),
        true_mm3=score(volume, truth).volume_mm3,
        found_mm3=score(volume, found & near).volume_mm3,
        found=found,
    )


def _dice(a: BoolArray, b: BoolArray) -> float | None:
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else None


def write_evaluation(
    folder: Path,
    *,
    log_csv: Path,
    network: torch.nn.Module,
    cache: CropCache,
    held_out: Sequence[int],
    device: torch.device,
    window_hu: Window = WINDOW_HU,
) -> dict[str, Any]:
    """Evaluate the held-out crops and write the page ``README.md`` with its figures into `folder`.

    Returns:
        What to say in the weights' description: means over the held-out crops, JSON types.

    Raises:
        DiskFull, OutputUnwritable: A file cannot be written.
    """
    model = CalciumModel(network, device=device, window_hu=window_hu)
    results = [evaluate_crop(model, cache, i) for i in held_out]
    _save(folder / "loss.png", _loss_figure(read_log(log_csv)))
    _save(folder / "volume.png", _volume_figure(results))
    order = np.argsort([-r.true_mm3 for r in results], kind="stable")
    shown = [int(order[i]) for i in np.unique(np.linspace(0, len(order) - 1, PICTURES).round().astype(int))]
    _save(
        folder / "crops.png",
        _crops_figure([(results[k], cache.hu[held_out[k]], cache.label[held_out[k]]) for k in shown]),
    )
    summary = summarise(results)
    write_whole(folder / "README.md", _page(results, summary).encode())
    return summary


def summarise(results: Sequence[CropResult]) -> dict[str, Any]:
    """Means over held-out crops; what cannot be said is left out."""
    with_calcium = [r for r in results if r.true_mm3 > 0]
    without = [r for r in results if r.true_mm3 == 0]
    summary: dict[str, Any] = {"held-out crops": len(results)}
    if with_calcium:
        summary["calcium Dice of crops, mean"] = _mean([r.dice or 0.0 for r in with_calcium])
        summary["calcium Dice in the heart and near it, mean"] = _mean(
            [r.dice_near or 0.0 for r in with_calcium]
        )
        summary["share of crops with calcium where some was found"] = _mean(
            [r.found_mm3 > 0 for r in with_calcium]
        )
    if without:
        summary["share of crops without calcium where none was found"] = _mean(
            [r.found_mm3 == 0 for r in without]
        )
    return summary


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    return figure


def _save(path: Path, figure: Figure) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _loss_figure(rows: Sequence[dict[str, str]]) -> Figure:
    figure = _figure(7, 3.5)
    left = figure.add_subplot()
    left.plot([int(r["step"]) for r in rows], [float(r["loss"]) for r in rows], color="tab:blue")
    left.set_xlabel("step")
    left.set_ylabel("training loss", color="tab:blue")
    right = left.twinx()
    measured = [(int(r["step"]), float(r["validation_dice"])) for r in rows if r["validation_dice"]]
    right.plot([s for s, _ in measured], [d for _, d in measured], "o-", ms=3, color="tab:orange")
    right.set_ylim(0, 1)
    right.set_ylabel("Dice of held-out patches", color="tab:orange")
    return figure


def _volume_figure(results: Sequence[CropResult]) -> Figure:
    figure = _figure(4.5, 4.5)
    axes = figure.add_subplot()
    true, found = [r.true_mm3 for r in results], [r.found_mm3 for r in results]
    top = 1.3 * max([10.0, *true, *found])
    axes.plot([0, top], [0, top], color="lightgrey", zorder=0)
    axes.plot(true, found, "o", alpha=0.6, color="tab:blue", clip_on=False)
    for set_scale in (axes.set_xscale, axes.set_yscale):
        set_scale("symlog", linthresh=10.0)
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    axes.set_xlabel("true calcium volume, mm³")
    axes.set_ylabel("found, in the heart and near it, mm³")
    return figure


def _crops_figure(
    shown: Sequence[tuple[CropResult, npt.NDArray[np.int16], npt.NDArray[np.uint8]]],
) -> Figure:
    """One row a crop, at its slice with most calcium: as the network sees it, the truth, what was found.

    Without calcium it is the slice where most was found in the heart or near it.
    """
    figure = _figure(9, 3.2 * len(shown))
    grid = figure.subplots(len(shown), 3, squeeze=False)
    for axes, (result, hu, label) in zip(grid, shown, strict=True):
        truth = np.asarray(label) == CALCIUM
        looked_at = truth if truth.any() else result.found & (np.asarray(label) > 0)
        z = int(looked_at.sum(axis=(1, 2)).argmax()) if looked_at.any() else CROP_SHAPE[0] // 2
        nothing = np.zeros_like(truth[z])
        views = (
            (f"{result.name}, slice {z}", nothing, (0, 0, 0)),
            (f"truth: {result.true_mm3:.0f} mm³", truth[z], (0, 255, 0)),
            (f"found: {result.found_mm3:.0f} mm³", result.found[z], (255, 0, 0)),
        )
        for view, (title, mask, colour) in zip(axes, views, strict=True):
            view.imshow(_painted(hu[z], mask, colour))
            view.set_title(title, fontsize=8)
            view.set_axis_off()
    return figure


def _painted(
    hu: npt.NDArray[np.int16], mask: BoolArray, colour: tuple[int, int, int]
) -> npt.NDArray[np.uint8]:
    """A slice in the DeepCAC2 paper's window, uint8 (y, x, 3), with `mask` half covered by a colour."""
    low, high = WINDOW_HU
    grey = (np.clip(hu, low, high) - low) / (high - low) * 255
    picture = np.repeat(grey[..., None], 3, axis=-1)
    picture[mask] = 0.5 * picture[mask] + 0.5 * np.array(colour)
    return picture.astype(np.uint8)


def _page(results: Sequence[CropResult], summary: dict[str, Any]) -> str:
    def text(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    lines = [
        "# Held-out crops",
        "",
        "Measured at the end of training on patients that it never saw, by the predictor that runs use, on "
        "the network's own crop. It says nothing about other scanners: that needs `deepcac2 evaluate`.",
        "",
        *(f"- {name}: {value}" for name, value in summary.items()),
        "",
        "![loss](loss.png)",
        "![volume](volume.png)",
        "![crops](crops.png)",
        "",
        "Green: truth. Red: found. Volumes are what counts by the rule agatston.",
        "",
        "| crop | Dice | Dice near the heart | true mm³ | found mm³ |",
        "|---|---|---|---|---|",
        *(
            f"| {r.name} | {text(r.dice)} | {text(r.dice_near)} | {r.true_mm3:.0f} | {r.found_mm3:.0f} |"
            for r in results
        ),
    ]
    return "\n".join(lines) + "\n"
