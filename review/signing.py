"""What a signature writes: SEG, SR and details of a reading, and a label map to train and to evaluate on."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import __version__
from ..dicom import Finding, Series, read_series, safe_name, write_segmentation
from ..dicom.derived import Signature, instance_of
from ..dicom.headers import quiet_pydicom
from ..errors import InputError
from ..evaluation.datasets import CALCIUM_MAP, CALCIUM_VALUES
from ..imaging.files import write_image
from ..imaging.labels import calcium_labels, heart_labels
from ..outputs.seg import maker_of
from ..outputs.structured_report import write_sr
from ..pipeline.arteries import ARTERIES, NOT_CORONARY, divided
from ..pipeline.case import Case
from ..pipeline.details import details
from ..pipeline.facts import CALCIUM, CT, GEOMETRY, HEART, HEART_MEASURES, HEART_SOURCE, SCORE
from ..pipeline.grades import graded
from ..pipeline.places import DETAILS_NAME, patient_folder
from ..pipeline.results import no_formula
from ..scoring import CalciumScore, score
from ..system.atomic import output_errors, write_json, write_whole
from . import values
from .case import ReadCase
from .journal import Entry

SEG_NAME, SR_NAME = "cac.seg.dcm", "cac.sr.dcm"


@dataclass(frozen=True, kw_only=True)
class Signed:
    """What was written.

    Attributes:
        folder: Where.
        score: Of the reading.
        seg, report: SOPInstanceUIDs; "" where none is written.
    """

    folder: Path
    score: CalciumScore
    seg: str = ""
    report: str = ""


def write_reading(
    folder: Path,
    case: ReadCase,
    array: npt.NDArray[np.uint8],
    signature: Signature,
    *,
    corrected: Sequence[Path] = (),
    entries: Sequence[Entry] = (),
) -> Signed:
    """Write a reading: ``cac.seg.dcm``, ``cac.sr.dcm`` and ``details.json``.

    A scan without a heart mask gets details alone: a SEG of ours says where the heart is.

    Args:
        folder: Where; the automatic result is not touched.
        case: The case.
        array: Its values after the decisions.
        signature: Who and when; what it replaces follows from the case.
        corrected: Folders of earlier readings of the same reader, which this one replaces as well.
        entries: The decisions, for the details.

    Raises:
        InputError: The CT is no longer what was read.
        DiskFull, OutputUnwritable: A file cannot be written.
    """
    with quiet_pydicom():
        volume = read_series(case.series).volume
    if volume.geometry != case.geometry or not np.array_equal(volume.hu[case.box], case.volume.hu):
        raise InputError("the CT has changed since the case was opened; open it again")
    whole = case.whole(array)
    mask = values.counted(whole)
    how: dict[str, Any] = {"slice_thickness": case.slice_thickness, "kvp": case.kvp}
    found = score(volume, mask, rule=case.rule, **how)
    if not math.isclose(found.total, case.score(array).total, rel_tol=1e-9, abs_tol=1e-9):
        raise InputError("the whole CT gives another score than the part that was shown; nothing was signed")
    heart = case.whole(case.heart)
    parts = values.arteries(whole), values.others(whole)
    facts = {
        CT: volume,
        GEOMETRY: volume.geometry,
        CALCIUM: calcium_labels(mask),
        ARTERIES: parts[0],
        NOT_CORONARY: parts[1],
        SCORE: found,
    }
    if heart.any():
        facts[HEART] = heart_labels(heart)
    given = case.details.get("heart_source")
    if given:
        facts[HEART_SOURCE] = given
    if case.details.get("heart"):
        facts[HEART_MEASURES] = case.details["heart"]
    read = graded(divided(_case(case, facts), rule=case.rule))
    provenance = {**_made_with(case), "deepcac2": __version__}
    seg, report = folder / SEG_NAME, folder / SR_NAME
    uids = {}
    if heart.any():
        write_segmentation(
            seg,
            series=case.series,
            geometry=volume.geometry,
            heart=heart,
            calcium=mask,
            parts=parts,
            slices=case.slices,
            algorithm_version=__version__,
            heart_by=maker_of(given) if given else None,
            signature=_replacing(signature, case.segmentation, [one / SEG_NAME for one in corrected]),
        )
        write_sr(
            report,
            read,
            segmentation=seg,
            provenance=provenance,
            signature=_replacing(signature, case.report, [one / SR_NAME for one in corrected]),
            remarks=(_said(case, signature, found),),
        )
        uids = {
            "seg": str(instance_of(seg).SOPInstanceUID),
            "report": str(instance_of(report).SOPInstanceUID),
        }
    content = details(read, provenance)
    content["read"] = {
        "by": signature.reader,
        "time": signature.time.isoformat(),
        "signature": signature.number,
        "automatic_score": case.automatic,
        "decisions": [asdict(entry) | {"runs": len(entry.runs)} for entry in entries],
        **uids,
    }
    content["outputs"] = [SEG_NAME, SR_NAME] if uids else []
    write_json(folder / DETAILS_NAME, content)
    return Signed(folder=folder, score=found, **uids)


def _replacing(signature: Signature, automatic: Path | None, corrected: Sequence[Path]) -> Signature:
    """The signature with the files that are there of those that it replaces."""
    before = [path for path in (automatic, *corrected) if path is not None and path.is_file()]
    return Signature(
        reader=signature.reader, number=signature.number, time=signature.time, replaces=tuple(before)
    )


def _case(case: ReadCase, facts: Mapping[Any, Any]) -> Case:
    """As of a run; what its gates said is said again."""
    warned = case.details.get("warnings") or ()
    findings = [
        Finding(code=str(w["code"]), message=str(w["message"]), fatal=False)
        for w in warned
        if isinstance(w, dict) and {"code", "message"} <= w.keys()
    ]
    return Case(series=case.series, facts=facts, findings=tuple(findings or case.series.warnings))


def _made_with(case: ReadCase) -> dict[str, Any]:
    made = case.details.get("provenance")
    usual: dict[str, Any] = {"weights": {}}
    return {**usual, **made} if isinstance(made, dict) else usual


def _said(case: ReadCase, signature: Signature, found: CalciumScore) -> str:
    """The reading in a sentence, for the report."""
    date = signature.time.strftime("%Y-%m-%d %H:%M UTC")
    said = f"Read and corrected by {signature.reader} on {date}: score {found.total:.1f}"
    if case.automatic is None:
        return f"{said}, without an automatic result."
    return f"{said}; the automatic result was {case.automatic:.1f}."


# A set to train and to evaluate on

_OF_KIND = {
    label.name: value for value, (_, label) in CALCIUM_VALUES.items() if label is not None and value > 10
}
"""Value in a `CALCIUM_MAP` by the name of what is not coronary; other kinds are 0 there."""


def write_annotation(home: Path, case: ReadCase, array: npt.NDArray[np.uint8]) -> Path | None:
    """Write ``<home>/<PatientID>/<SeriesInstanceUID>/calcium.nrrd`` and ``ct/``, links to the CT's files.

    That is what `deepcac2 train calcium --data HOME` and `deepcac2 evaluate --data HOME` read.

    Returns:
        The folder; None where the CT lies in a zip archive, whose members no link can point to.

    Raises:
        DiskFull, OutputUnwritable: It cannot be written.
    """
    if any(ref.member for ref in case.series.slices):
        return None
    table = np.zeros(256, dtype=np.uint8)
    for value in values.VALUES.values():
        if value.counted or value.value == values.UNSURE:
            table[value.value] = value.value
        else:
            table[value.value] = _OF_KIND.get(value.name, 0)
    folder = home / patient_folder(case.series.patient_id) / safe_name(case.series.series_uid)
    _link(folder / "ct", case.series)
    write_image(folder / CALCIUM_MAP, table[case.whole(array)], case.geometry)
    return folder


def _link(folder: Path, series: Series) -> None:
    """Links to the files of a series."""
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        wanted = {
            f"{nr:05d}.dcm": path
            for nr, path in enumerate(dict.fromkeys(ref.path.resolve() for ref in series.slices))
        }
        for old in folder.iterdir():
            if old.is_symlink() and (old.name not in wanted or old.readlink() != wanted[old.name]):
                old.unlink()
        for name, target in wanted.items():
            if not (folder / name).is_symlink():
                (folder / name).symlink_to(target)


def write_reads(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The table of signed readings, for `deepcac2 stats agreement`: a row a case, a column a reader.

    Args:
        path: CSV file.
        rows: Each with ``patient_id``, ``study_uid``, ``series_uid``, ``automatic`` and ``readers``: score by
            reader.

    Raises:
        DiskFull, OutputUnwritable: It cannot be written.
    """
    readers = sorted({name for row in rows for name in row["readers"]})
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    about = ("patient_id", "study_uid", "series_uid", "automatic")
    writer.writerow([*about, *(f"score {name}" for name in readers)])
    for row in rows:
        cells = [*(row[name] for name in about), *(row["readers"].get(name) for name in readers)]
        writer.writerow(["" if cell is None else no_formula(cell) for cell in cells])
    write_whole(path, text.getvalue().encode())
