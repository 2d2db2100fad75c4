"""`deepcac2 score`: the Agatston score of a CT and a mask that are already there."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputDamaged, InputError, InputUnreadable, MaskMismatch
from .screen import add_row, new_console, new_table, note, say_json

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..dicom import Series
    from ..imaging import Volume
    from ..scoring import CalciumScore, Rule

GRID_TOLERANCE_MM = 0.1
"""How far corners of CT and mask may lie apart: files round spacing and direction differently."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "score",
        help="score a CT with a given calcium mask",
        description="Compute the Agatston score of CT within MASK, by any rule. Nothing is segmented: the "
        "mask comes from 'run', from another tool or by hand, and lies on the CT's own grid.",
    )
    parser.add_argument(
        "ct", metavar="CT", type=Path, help="DICOM folder, file or zip archive; NIfTI or NRRD"
    )
    parser.add_argument("mask", metavar="MASK", type=Path, help="DICOM SEG, NIfTI or NRRD")
    parser.add_argument(
        "--rule",
        default="agatston",
        metavar="NAME",
        help="one of 'deepcac2 inspect --rules', or all (default: %(default)s)",
    )
    parser.add_argument("--series", metavar="UID", help="series to take where CT holds several")
    parser.add_argument("--label", type=int, metavar="N", help="value of calcium in a label map")
    parser.add_argument(
        "--segment", choices=("calcium", "heart"), help="segment of a DICOM SEG (default: calcium)"
    )
    parser.add_argument(
        "--slice-thickness", type=float, metavar="MM", help="SliceThickness (default: the DICOM header's)"
    )
    parser.add_argument(
        "--kvp",
        type=float,
        metavar="KV",
        help="tube voltage, for rules that go by it (default: the DICOM header's)",
    )
    parser.add_argument(
        "--calibration-factor", type=float, metavar="F", help="mg per mm3 and HU of the scanner, for the mass"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        help="write what is printed there as well: score.json, and lesions.csv where there is one rule",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the score."""
    from ..scoring import score
    from ..scoring.rules import find_rule, named_rules

    rules = list(named_rules().values()) if args.rule == "all" else [find_rule(args.rule)]
    volume, series = _read_ct(args)
    mask = _read_mask(args, volume)
    _warn_of_skipped(args.mask, rules)
    thickness = args.slice_thickness
    if thickness is None and series is not None:
        thickness = series.slice_thickness
    kvp = args.kvp if args.kvp is not None or series is None else series.kvp

    scores: dict[str, CalciumScore | str] = {}
    for rule in rules:
        if len(rules) > 1 and rule.thickness == "slice-thickness" and thickness is None:
            scores[rule.name] = "needs --slice-thickness MM"
            continue
        if len(rules) > 1 and rule.lacks(kvp):
            scores[rule.name] = "needs --kvp KV" if kvp is None else f"not for {kvp:g} kV"
            continue
        scores[rule.name] = score(
            volume,
            mask,
            rule=rule,
            slice_thickness=thickness,
            calibration_factor=args.calibration_factor,
            kvp=kvp,
        )
    document = _document(args, series, scores)
    if args.json:
        say_json(document)
    else:
        _print_tables(scores)
    if args.out is not None:
        _write(args.out, document, scores)
    return 0


def _warn_of_skipped(mask: Path, rules: Sequence[Rule]) -> None:
    """Say so where a run made the mask, and skipped what these rules would count."""
    from ..pipeline.run import read_details

    try:
        exact = read_details(mask.parent)["calcium"]["exact_from_hu"]
    except (InputError, KeyError, TypeError):
        return
    if names := [rule.name for rule in rules if rule.counts_below(exact)]:
        note(
            f"warning: {mask} was made for a rule that counts from {exact} HU on and is not complete below; "
            f"for {' and '.join(names)} run again with the rule in the workflow"
        )


def _read_ct(args: argparse.Namespace) -> tuple[Volume, Series | None]:
    import numpy as np

    from ..imaging import Volume
    from ..imaging.files import is_image, volume_from_image
    from ..imaging.orientation import to_canonical

    if args.ct.is_file() and is_image(args.ct):
        volume = volume_from_image(args.ct)
        turned = to_canonical(volume.hu, volume.geometry)  # files may be stored sagittally
        return Volume(hu=np.ascontiguousarray(turned.array), geometry=turned.geometry), None

    from ..dicom import discover, read_series

    found = discover(args.ct)
    if not found.series:
        first = found.unreadable[0]
        raise InputDamaged(f"{first.path} is no scan: {first.reason}; copy it again from its source")
    series = _choose_series(found.series, args)
    if series.rejection is not None:
        note(f"warning: 'run' would reject this series: {series.rejection.message}")
    return read_series(series).volume, series


def _choose_series(found: Sequence[Series], args: argparse.Namespace) -> Series:
    """The series named, else the one the SEG was made on, else the only one fit to score."""
    from ..dicom.seg.reader import is_segmentation, referenced_series

    uid = args.series or (referenced_series(args.mask) if is_segmentation(args.mask) else "")
    named = [series for series in found if series.series_uid == uid]
    if named:
        return named[0]
    if args.series:
        raise InputError(
            f"{args.ct} holds no series {args.series}: list them with 'deepcac2 inspect {args.ct}'"
        )
    fit = [series for series in found if series.rejection is None] or list(found)
    if len(fit) != 1:
        raise InputError(
            f"{args.ct} holds {len(fit)} series: name one with --series UID, "
            f"as listed by 'deepcac2 inspect {args.ct}'"
        )
    return fit[0]


def _read_mask(args: argparse.Namespace, volume: Volume) -> npt.NDArray[np.bool_]:
    import numpy as np

    from ..dicom.seg.reader import is_segmentation, read_segmentation
    from ..imaging.files import IMAGE_ENDINGS, is_image, read_image
    from ..imaging.orientation import to_canonical

    if not args.mask.is_file():
        raise InputUnreadable(f"There is no file {args.mask}: give a DICOM SEG, NIfTI or NRRD file as MASK")
    if is_segmentation(args.mask):
        if args.label is not None:
            raise InputError(
                "--label is for label maps: use --segment calcium or --segment heart with a DICOM SEG"
            )
        segments = read_segmentation(args.mask, volume.geometry)
        wanted = args.segment or "calcium"
        if wanted not in segments:
            name = "coronary calcium" if wanted == "calcium" else wanted
            raise InputError(
                f"{args.mask} has no segment known as {name}: try --segment {next(iter(segments))}, or name "
                f"it '{name.capitalize()}' there"
            )
        return segments[wanted]
    if not is_image(args.mask):
        raise InputUnreadable(
            f"{args.mask} is neither a DICOM SEG that can be read nor an image "
            f"({', '.join(IMAGE_ENDINGS)}): convert it"
        )
    if args.segment is not None:
        raise InputError("--segment is for DICOM SEG: use --label N with a label map")

    array, geometry = read_image(args.mask)
    mask = to_canonical(array, geometry)
    ct = to_canonical(volume.hu, volume.geometry)
    if not mask.geometry.same_grid(ct.geometry, GRID_TOLERANCE_MM):
        raise MaskMismatch(
            f"{args.mask} does not lie on the CT's grid "
            f"({_describe(mask.geometry)}; CT {_describe(ct.geometry)}): resample it to the CT"
        )
    labels = ct.undo(mask.array)
    values = np.unique(labels)
    values = values[values != 0]
    label = args.label
    if label is None:
        if len(values) > 1:
            raise InputError(
                f"{args.mask} holds {_listed(values)}: name the one that is calcium with --label N"
            )
        return np.asarray(labels != 0)
    if label == 0 or (len(values) and label not in values):
        raise InputError(
            f"{args.mask} has no label {label}; it holds {_listed(values)}: give another --label"
        )
    return np.asarray(labels == label)


def _listed(values: npt.NDArray[Any]) -> str:
    shown = ", ".join(f"{v:g}" for v in values[:8])
    return f"the values {shown}{', …' if len(values) > 8 else ''}" if len(values) else "zeros only"


def _describe(geometry: Any) -> str:
    size = " × ".join(str(n) for n in reversed(geometry.shape))
    spacing = " × ".join(f"{s:.4g}" for s in reversed(geometry.spacing))
    origin = ", ".join(f"{v:.1f}" for v in geometry.origin)
    return f"{size} voxels of {spacing} mm from ({origin})"


def _document(
    args: argparse.Namespace, series: Series | None, scores: dict[str, CalciumScore | str]
) -> dict[str, Any]:
    """The result as JSON."""
    source = {
        "ct": str(args.ct),
        "mask": str(args.mask),
        "SeriesInstanceUID": series.series_uid if series is not None else None,
    }
    results = {name: s if isinstance(s, str) else s.to_dict() for name, s in scores.items()}
    if len(results) == 1:
        (only,) = results.values()
        return {**source, **(only if isinstance(only, dict) else {})}
    return {**source, "rules": {n: {"error": r} if isinstance(r, str) else r for n, r in results.items()}}


LESION_COLUMNS = (
    "index", "score", "volume_mm3", "area_mm2", "n_voxels", "max_hu", "mean_hu", "weights",
    "first_slice_index", "last_slice_index", "x_lps", "y_lps", "z_lps",
)  # fmt: skip
"""Of ``lesions.csv``; slices as array indices, from 0."""


def _write(folder: Path, document: dict[str, Any], scores: dict[str, CalciumScore | str]) -> None:
    """``score.json`` and ``lesions.csv``.

    Raises:
        DiskFull, OutputUnwritable: They cannot be written.
    """
    import csv
    import io

    from ..system.atomic import write_json, write_whole

    write_json(folder / "score.json", document)
    found = [s for s in scores.values() if not isinstance(s, str)]
    if len(scores) == 1 and found:
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(LESION_COLUMNS)
        for one in found[0].lesions:
            weights = " ".join(map(str, one.weights))
            measures = (one.score, one.volume_mm3, one.area_mm2, one.n_voxels, one.max_hu, one.mean_hu)
            writer.writerow([one.index, *measures, weights, *one.slices, *one.centroid_lps])
        write_whole(folder / "lesions.csv", text.getvalue().encode())
    note(f"written: {folder}")


def _print_tables(scores: dict[str, CalciumScore | str]) -> None:
    from ..scoring.rules import named_rules

    console = new_console()
    summary = new_table("rule")
    for name in ("score", "risk group", "volume mm³", "mass mg", "lesions"):
        summary.add_column(name, justify="right")
    for name, s in scores.items():
        if isinstance(s, str):
            add_row(summary, (name, s, "", "", "", ""))
            continue
        mass = "" if s.mass_mg is None else f"{s.mass_mg:.1f}"
        group = f"{int(s.risk_group)} ({s.risk_group.label})"
        add_row(summary, (name, f"{s.total:.1f}", group, f"{s.volume_mm3:.1f}", mass, str(len(s.lesions))))
    console.print(summary)
    if len(scores) > 1:
        console.print()
        for name in scores:
            console.print(f"{name}: {named_rules()[name].summary}", style="dim")
        return
    (only,) = scores.values()
    if isinstance(only, str) or not only.lesions:
        return
    table = new_table()
    names = ("lesion", "score", "volume mm³", "max HU", "weights", "slices", "centre LPS mm")
    for name in names:
        table.add_column(name, justify="right")
    for lesion in only.lesions:
        first, last = lesion.slices
        row = (
            str(lesion.index),
            f"{lesion.score:.1f}",
            f"{lesion.volume_mm3:.1f}",
            str(lesion.max_hu),
            ", ".join(str(w) for w in lesion.weights),
            str(first) if first == last else f"{first}-{last}",
            ", ".join(f"{v:.1f}" for v in lesion.centroid_lps),
        )
        add_row(table, row)
    console.print()
    console.print(table)
