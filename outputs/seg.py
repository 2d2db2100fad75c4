"""The DICOM SEG: the heart, and the calcium, or where no network has looked for it, what is possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..pipeline.arteries import ARTERIES, NOT_CORONARY
from ..pipeline.case import Case
from ..pipeline.facts import CALCIUM, GEOMETRY, HEART, HEART_SOURCE, POSSIBLE_CALCIUM
from ..pipeline.image_series import ImageSeries
from ..pipeline.step import Context, Step, register
from ..pipeline.writer import Writer, register_writer
from .organizer import writing

if TYPE_CHECKING:
    from ..dicom.seg.writer import Maker
    from ..pipeline.workflow import Workflow

MODULE = "DSegConverter"


@dataclass(frozen=True, kw_only=True)
class DSegConverterOptions:
    """Write the DICOM SEG. The keys are mhubio's own.

    Attributes:
        converted_file_name: Of the file, used by mhubio's runner only; `DataOrganizer` says where it goes.
        model_name: Name of the algorithm in the SEG.
        by_class: Beside heart and coronary calcium, a segment for each artery and each kind of what was not
            counted, where the weights name them; false: the two segments alone, as in the published release.
    """

    converted_file_name: str = "cac.seg.dcm"
    model_name: str = "deepcac2"
    by_class: bool = True


def _write(path: Path, case: Case, options: DSegConverterOptions, context: Context) -> bool:
    """A NIfTI or NRRD file has no DICOM images that a SEG could refer to."""
    from .. import __version__
    from ..dicom import write_segmentation  # it loads pydicom's tables of codes

    if isinstance(case.series, ImageSeries):
        return False
    given = case.get(HEART_SOURCE)
    write_segmentation(
        path,
        series=case.series,
        geometry=case[GEOMETRY],
        heart=case[HEART].mask,
        calcium=case[CALCIUM if CALCIUM in case else POSSIBLE_CALCIUM].mask,
        parts=[case[fact] for fact in NAMES if options.by_class and fact in case],
        slices=case.series.slices,
        algorithm_name=options.model_name,
        algorithm_version=__version__,
        heart_by=None if given is None else maker_of(given),
    )
    return True


def maker_of(source: Mapping[str, Any]) -> Maker:
    """What made a heart that was taken from a file. DICOM asks how it was made; where the file does not say,
    it was somebody's choice to take it: SEMIAUTOMATIC."""
    from ..dicom.seg.writer import Maker

    uid = source.get("sop_instance_uid", "")
    where = f"{source['format']} {uid or source['file']}"
    return Maker(
        kind=source["algorithm_type"] or "SEMIAUTOMATIC",
        name=source["algorithm"] or "not stated",
        description=f"Not found by deepcac2: taken from {where}, {' + '.join(source['segments'])}",
    )


def _of_all(workflows: Sequence[Workflow]) -> DSegConverterOptions:
    chosen: DSegConverterOptions = max(workflows, key=lambda w: w.finds(CALCIUM)).options(MODULE)
    return chosen


NAMES = (ARTERIES, NOT_CORONARY)
NEEDS = (GEOMETRY, HEART, (CALCIUM, POSSIBLE_CALCIUM))

SEG = register_writer(
    Writer(
        name="seg",
        file="cac.seg.dcm",
        write=_write,
        needs=NEEDS,
        uses=NAMES,
        module=MODULE,
        option="converted_file_name",
        query="dicomseg:mod=seg",
    )
)

STEP = register(
    Step(
        module=MODULE,
        options=DSegConverterOptions,
        phase="write",
        reads=lambda options: NEEDS,
        build=writing(MODULE),
        merge=_of_all,
    )
)
