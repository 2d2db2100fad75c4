"""The step that takes the heart from a file instead of a network, through the same gates."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from ...dicom.gates import Gate, register_gate
from ...errors import WorkflowError
from ...imaging.labels import heart_labels
from ...pipeline.case import Case
from ...pipeline.facts import CT, HEART, HEART_MEASURES, HEART_SOURCE
from ...pipeline.step import Column, Context, Step, register
from .given import GivenHearts, in_words
from .step import check_heart

HEART_GIVEN = register_gate(
    Gate(
        code="heart-given",
        sentence="The heart was not found by this program but taken from a file.",
        fatal=False,
        caution=True,
    )
)


@dataclass(frozen=True, kw_only=True)
class HeartImporterOptions:
    """Take the heart from a file.

    Attributes:
        source: A folder, or one file: DICOM SEGs that refer to the series, or NIfTI or NRRD masks that are
            named after it.
        segments: What is the heart: codes or labels of segments, file names without ending, values of a label
            map, or ``chambers`` for the five parts of TotalSegmentator 1; empty: what is known as the whole
            heart.
    """

    source: str = ""
    segments: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class TakeHeart:
    """Heart mask of a file, then the gates that look at it.

    Attributes:
        hearts: Where they are.
        allow: Codes of gates that shall warn instead of reject.
    """

    hearts: GivenHearts
    allow: Collection[str] = ()

    def __call__(self, case: Case) -> Case:
        """Rejects the case for what `check_heart` finds; mask, measures and source stay.

        Raises:
            SeriesRejected, InputUnreadable, InputError: See `GivenHearts.of`.
        """
        volume = case[CT]
        given = self.hearts.of(case.series, volume.geometry)
        measures, findings = check_heart(volume, given.mask, allow=self.allow)
        case = case.add(HEART, heart_labels(given.mask)).add(HEART_MEASURES, measures)
        message = (
            f"the heart was not found by this program but taken from {given.source['file']} "
            f"({in_words(given.source)}): calcium outside it may be missing from the score, as what "
            "follows was tuned to hearts of another kind"
        )
        return case.add(HEART_SOURCE, given.source).noted(*findings, HEART_GIVEN.finding(message))


def _build(options: HeartImporterOptions, context: Context) -> TakeHeart:
    if not options.source:
        raise WorkflowError("HeartImporter: 'source' names no folder or file with hearts")
    hearts = GivenHearts(root=Path(options.source), segments=tuple(map(str, options.segments)))
    return TakeHeart(hearts=hearts, allow=context.allow)


def _source(case: Case) -> str:
    source = case.get(HEART_SOURCE)
    return "" if source is None else in_words(source)


def _remarks(case: Case) -> str | None:
    return "heart from a file" if HEART_SOURCE in case else None


STEP = register(
    Step(
        module="HeartImporter",
        options=HeartImporterOptions,
        phase="compute",
        reads=lambda options: (CT,),
        writes=(HEART, HEART_MEASURES, HEART_SOURCE),
        build=_build,
        remarks=_remarks,
        gives=HEART,
        columns=(
            Column(
                name="heart_source",
                kind=str,
                meaning="what the heart was taken from where no network here has found it: the kind of file, "
                "what made it, and what of it is the heart; empty: found by the network",
                label="Heart from",
                of=_source,
            ),
        ),
    )
)
