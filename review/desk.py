"""The reading desk: a folder of readings, whoever asks for them, page or command.

::

    REVIEW/cases/<PatientID>/<SeriesInstanceUID>/<reader>.jsonl     the journal of a reader
    REVIEW/cases/<PatientID>/<SeriesInstanceUID>/<reader>/read-1/   what was signed: SEG, SR, details
    REVIEW/annotated/<reader>/<PatientID>/<SeriesInstanceUID>/      the same as ct/ and calcium.nrrd
    REVIEW/reads.csv                                                the scores of all that was signed

All follows from the journals: what is kept in memory can be lost.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dicom import safe_name
from ..dicom.derived import Signature, check_reader
from ..errors import DeepCACError, InputError, OutputInsideInput
from ..pipeline.places import patient_folder
from ..scoring import CalciumScore, risk_group
from ..system.atomic import output_errors
from .case import ReadCase
from .journal import ENDING, Conflict, Entry, Journal, appending, now, read_journal
from .reading import Decision, apply, begun, decision_of, replay
from .signing import SEG_NAME, Signed, write_annotation, write_reading, write_reads

CASES, ANNOTATED, READS = "cases", "annotated", "reads.csv"
_SIGNED = "read-"
_KEPT = 3
"""Cases in memory; each has some ten to some hundred MB."""
DIFFER = 0.05
"""Scores of two readers that lie further apart than this differ: more than the digits that are shown."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A reading as it stands.

    Attributes:
        case, journal: Of it.
        array: Its values.
        score: Of them.
    """

    case: ReadCase
    journal: Journal
    array: npt.NDArray[np.uint8] = field(repr=False)
    score: CalciumScore

    @property
    def after(self) -> int:
        """Number of the last entry, to be named with the next decision."""
        return len(self.journal.entries)


@dataclass(frozen=True, kw_only=True)
class Read:
    """One reader's reading of one case, in short.

    Attributes:
        reader: Who.
        state: ``begun``, ``read`` (signed), or ``changed``: decisions came after the signature.
        score: Signed score; of a reading that is only begun the score so far.
        automatic: Score of the automatic result when it was opened.
        time: Of the last entry.
        decisions: That hold.
        patient_id, study_uid: Of the CT.
    """

    reader: str
    state: str
    score: float | None
    automatic: float | None
    time: str
    decisions: int
    patient_id: str = field(default="", repr=False)
    study_uid: str = field(default="", repr=False)


class Desk:
    """The readings in a folder.

    Args:
        folder: Of the readings; made where it is not there.
        opener: Opens a case by SeriesInstanceUID.
        apart: Folders that it must not lie in, nor they in it: results and CT.

    Raises:
        OutputInsideInput: It does.
        DiskFull, OutputUnwritable: It cannot be made.
    """

    def __init__(
        self, folder: Path, opener: Callable[[str], ReadCase], *, apart: tuple[Path, ...] = ()
    ) -> None:
        home = folder.resolve()
        for other in (path.resolve() for path in apart):
            if home == other or other in home.parents or home in other.parents:
                raise OutputInsideInput(
                    f"the folder of readings {folder} must lie apart from {other}; choose another"
                )
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.folder = home
        self._opener = opener
        self._opening = threading.Lock()
        self._changing = threading.Lock()
        self._cases: OrderedDict[str, ReadCase] = OrderedDict()
        self._standing: OrderedDict[Path, tuple[str, tuple[Entry, ...], npt.NDArray[np.uint8]]] = (
            OrderedDict()
        )
        self._short: dict[Path, tuple[tuple[int, int], tuple[str, Read]]] = {}
        self._homes: dict[str, set[Path]] = {}

    def case(self, series_uid: str) -> ReadCase:
        """A case, from memory where it was opened a moment ago.

        Raises:
            DeepCACError: See the opener.
        """
        found = self._known(series_uid)
        if found is None:
            with self._opening:  # one whole CT in memory at a time
                found = self._known(series_uid) or self._opener(series_uid)
                with self._changing:
                    self._cases[series_uid] = found
                    while len(self._cases) > _KEPT:
                        self._cases.popitem(last=False)
        return found

    def _known(self, series_uid: str) -> ReadCase | None:
        with self._changing:
            if series_uid in self._cases:
                self._cases.move_to_end(series_uid)
            return self._cases.get(series_uid)

    def place(self, case: ReadCase) -> Path:
        """Folder of the readings of a case."""
        return self._home(case.series.patient_id, case.series.series_uid)

    def _home(self, patient_id: str, series_uid: str) -> Path:
        return self.folder / CASES / patient_folder(patient_id) / safe_name(series_uid)

    def _journal(self, case: ReadCase, reader: str) -> Path:
        return self.place(case) / f"{safe_name(check_reader(reader))}{ENDING}"

    # One reading

    def standing(self, series_uid: str, reader: str) -> Standing:
        """A reading as it is; one that was not begun is the automatic result.

        Raises:
            InputError: The reader's name is none, or the journal is one of other pieces.
            DeepCACError: The case cannot be opened, or the journal cannot be read.
        """
        case = self.case(series_uid)
        return self._stand(case, read_journal(self._journal(case, reader)), reader)

    def _stand(self, case: ReadCase, journal: Journal, reader: str) -> Standing:
        _check_basis(case, journal, reader)
        holding = journal.holding
        with self._changing:
            digest, known, array = self._standing.get(journal.path, ("", (), None))
        if array is None or digest != case.digest or holding[: len(known)] != known:
            known, array = (), begun(case)
        if len(holding) > len(known):
            array = array.copy()
            for entry in holding[len(known) :]:
                apply(case, array, decision_of(entry))
        with self._changing:
            self._standing[journal.path] = (case.digest, holding, array)
            self._standing.move_to_end(journal.path)
            while len(self._standing) > 2 * _KEPT:
                self._standing.popitem(last=False)
        return Standing(case=case, journal=journal, array=array, score=case.score(array))

    def decide(self, series_uid: str, reader: str, decision: Decision, *, after: int) -> Standing:
        """Write a decision; when this returns, it lies on the disk.

        Args:
            after: Number of the last entry that the reader knows of.

        Raises:
            Conflict: There are others.
            InputError: It is no decision on this case.
            DeepCACError: See `standing`; the journal cannot be written.
        """
        case = self.case(series_uid)
        with appending(self._journal(case, reader)) as (journal, add):
            now_ = self._current(case, journal, after, reader)
            array = now_.array.copy()
            before = apply(case, array, decision)
            self._begin(case, reader, journal, add)
            add(decision.entry(reader) | {"before": before, "score": round(case.score(array).total, 4)})
        return self.standing(series_uid, reader)

    def undo(self, series_uid: str, reader: str, *, after: int) -> Standing:
        """Take back the last decision that holds.

        Raises:
            Conflict, InputError, DeepCACError: See `decide`; there is nothing to take back.
        """
        case = self.case(series_uid)
        with appending(self._journal(case, reader)) as (journal, add):
            self._current(case, journal, after, reader)
            if not journal.holding:
                raise InputError("there is nothing to undo")
            array = replay(case, journal.holding[:-1])
            total = round(case.score(array).total, 4)
            add({"by": reader, "do": "undo", "of": journal.holding[-1].n, "score": total})
        return self.standing(series_uid, reader)

    def sign(self, series_uid: str, reader: str, *, after: int) -> tuple[Standing, Signed]:
        """Write the reading; the journal says so last, so that a kill before leaves it unsigned.

        Raises:
            Conflict, InputError, DeepCACError: See `decide` and `signing.write_reading`.
        """
        case = self.case(series_uid)
        path = self._journal(case, reader)
        with appending(path) as (journal, add):
            at = self._current(case, journal, after, reader)
            self._begin(case, reader, journal, add)
            number = len(journal.signed) + 1
            home = path.with_suffix("")
            signed = write_reading(
                home / f"{_SIGNED}{number}",
                case,
                at.array,
                Signature(reader=reader, number=number, time=now()),
                corrected=[home / f"{_SIGNED}{nr}" for nr in range(1, number)],
                entries=journal.holding,
            )
            write_annotation(self.folder / ANNOTATED / safe_name(reader), case, at.array)
            place = signed.folder.relative_to(self.folder).as_posix()
            total = round(signed.score.total, 4)
            add(
                {
                    "by": reader,
                    "do": "sign",
                    "place": place,
                    "seg": signed.seg,
                    "report": signed.report,
                    "score": total,
                }
            )
        self._write_reads()
        return self.standing(series_uid, reader), signed

    def _current(self, case: ReadCase, journal: Journal, after: int, reader: str) -> Standing:
        if after != len(journal.entries):
            raise Conflict(
                "this case was read on elsewhere under the same name; load it again, nothing is lost"
            )
        return self._stand(case, journal, reader)

    def _begin(self, case: ReadCase, reader: str, journal: Journal, add: Callable[..., Entry]) -> None:
        if not journal.entries:
            automatic = None if case.automatic is None else round(case.automatic, 4)
            add(
                {
                    "by": reader,
                    "do": "open",
                    "series": case.series.series_uid,
                    "study": case.series.study_uid,
                    "patient": case.series.patient_id,
                    "digest": case.digest,
                    "automatic": automatic,
                    "score": automatic,
                }
            )

    def signed_file(self, series_uid: str, reader: str, name: str) -> Path | None:
        """A file of the last signature, None where there is none.

        Args:
            name: One of those that `write_reading` writes.
        """
        case = self.case(series_uid)
        signed = read_journal(self._journal(case, reader)).signed
        if not signed or name not in (SEG_NAME, "cac.sr.dcm", "details.json"):
            return None
        path = self._journal(case, reader).with_suffix("") / f"{_SIGNED}{len(signed)}" / name
        return path if path.is_file() else None

    # All readings

    def readings(self) -> dict[str, list[Read]]:
        """Every reading by SeriesInstanceUID, readers by name. What cannot be read is left out."""
        found: dict[str, list[Read]] = {}
        for entry in sorted(_journals(self.folder / CASES, 2), key=lambda one: one.path):
            short = self._in_short(entry)
            if short is not None:
                found.setdefault(short[0], []).append(short[1])
                with self._changing:
                    self._homes.setdefault(short[0], set()).add(Path(entry.path).parent)
        return found

    def readings_of(self, patient_id: str, series_uid: str) -> list[Read]:
        """Those of one case, without a look at all others.

        They are looked for where `readings` last found some of this series, and where the next ones of this
        patient go.
        """
        with self._changing:
            homes = {self._home(patient_id, series_uid), *self._homes.get(series_uid, ())}
        entries = (entry for home in sorted(homes) for entry in _journals(home, 0))
        shorts = (self._in_short(entry) for entry in sorted(entries, key=lambda one: one.path))
        return [short[1] for short in shorts if short is not None and short[0] == series_uid]

    def _in_short(self, entry: os.DirEntry[str]) -> tuple[str, Read] | None:
        path = Path(entry.path)
        try:
            status = entry.stat()
            mark = (status.st_mtime_ns, status.st_size)
            with self._changing:
                known = self._short.get(path)
            if known is not None and known[0] == mark:
                return known[1]
            journal = read_journal(path)
        except (OSError, DeepCACError):
            return None
        if not journal.entries or journal.entries[0].do != "open":
            return None
        first, last, signed = journal.entries[0], journal.entries[-1], journal.signed
        state = "begun" if not signed else "changed" if journal.changed_since else "read"
        read = Read(
            reader=first.by,
            state=state,
            score=signed[-1].score if signed else last.score,
            automatic=first.automatic,
            time=last.time,
            decisions=len(journal.holding),
            patient_id=first.patient,
            study_uid=first.study,
        )
        with self._changing:
            self._short[path] = (mark, (first.series, read))
        return first.series, read

    def _write_reads(self) -> None:
        """The table of what was signed, anew."""
        with appending(self.folder / ".reads.lock"):
            write_reads(self.folder / READS, list(self._signed_rows()))

    def _signed_rows(self) -> Iterator[dict[str, Any]]:
        for uid, reads in self.readings().items():
            scores = {read.reader: read.score for read in reads if read.state != "begun"}
            if scores:
                yield {
                    "patient_id": reads[0].patient_id,
                    "study_uid": reads[0].study_uid,
                    "series_uid": uid,
                    "automatic": reads[0].automatic,
                    "readers": scores,
                }


def _journals(folder: Path | str, depth: int) -> Iterator[os.DirEntry[str]]:
    """The journals so many folders below one; nothing where it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if depth and entry.is_dir():
                    yield from _journals(entry.path, depth - 1)
                elif not depth and entry.name.endswith(ENDING):
                    yield entry
    except OSError:
        return


def differ(reads: list[Read]) -> bool:
    """Whether two readers have signed different scores."""
    scores = [read.score for read in reads if read.state != "begun" and read.score is not None]
    return bool(scores) and max(scores) - min(scores) > DIFFER


def regrouped(read: Read) -> bool:
    """Whether a reading puts the scan into another risk group than the automatic result."""
    if read.score is None or read.automatic is None:
        return False
    return risk_group(read.score) != risk_group(read.automatic)


def _check_basis(case: ReadCase, journal: Journal, reader: str) -> None:
    """See that a journal is of this case, of these pieces, and of this reader (Ann may be ann)."""
    if not journal.entries:
        return
    first = journal.entries[0]
    if first.do != "open" or first.series != case.series.series_uid:
        raise InputError(f"{journal.path.name} is no journal of this series; move it away")
    if first.by != reader:
        raise InputError(f"{journal.path.name} is the journal of {first.by}; take another name")
    if first.digest != case.digest:
        raise InputError(
            f"the automatic result has changed since {first.by} began to read this case, and its pieces. "
            f"Move {journal.path.name} away to read it anew, or give the results that it was read from"
        )
