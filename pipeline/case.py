"""`Case`: the one object per series that flows through the chain and only gains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

if TYPE_CHECKING:
    from ..dicom import Finding, Series
    from ..imaging.labels import Label

T = TypeVar("T")


OMITTED = object()
"""As `Fact.absent`: the section is not there either."""


@dataclass(frozen=True)
class ImageFile:
    """How a fact on the CT's grid is kept as a file.

    Attributes:
        name: Of the NIfTI file.
        query: mhubio's data type; ``roi`` in it is what SegDB calls the structure.
        classes: Of `Labels`; empty for other images.
    """

    name: str
    query: str
    classes: tuple[Label, ...] = ()


@dataclass(frozen=True)
class Fact(Generic[T]):
    """A typed thing that a step may add to a case; facts of the same name are the same.

    Attributes:
        name: In ``case.json`` and in messages.
        meaning: A few words, for messages and documents.
        section: Key of the details JSON under which it stands; its value has JSON types only.
        absent: What stands there where the case does not have it; `OMITTED`: nothing, not even the key.
        image: The file that holds it where files are exchanged; it is an array (z, y, x) on the CT's grid,
            or `Labels`.
        kind: The type of a value that is neither an image nor made of JSON types: a dataclass.
    """

    name: str
    meaning: str = field(default="", compare=False)
    section: str = field(default="", compare=False)
    absent: Any = field(default=None, compare=False)
    image: ImageFile | None = field(default=None, compare=False)
    kind: type[Any] | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Why a case goes no further.

    Attributes:
        status: ``"rejected"`` by a quality gate, or ``"failed"``: something broke.
        code, reason: Reason code, and one sentence for the user.
        module: Which module said so; "" where none could.
    """

    status: Literal["rejected", "failed"]
    code: str
    reason: str
    module: str = ""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One series on its way through the stages; each stage returns a copy with more in it.

    Attributes:
        series: What the headers said.
        facts: What is known beside it, see `pipeline.facts` and the folders of the methods.
        findings: What the gates found, from the header gates on, fatal ones too.
        outputs: Files written, by role (``"seg"``, ``"report"``, ``"preview"``, ``"nifti-ct"`` …).
        timings: Seconds per stage name.
        stop: Why the case goes no further; None as long as it does. All that was known before stays.
    """

    series: Series
    facts: Mapping[Fact[Any], Any] = field(default_factory=dict, repr=False)
    findings: tuple[Finding, ...] = ()
    outputs: dict[str, Path] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    stop: Stop | None = None

    def __getitem__(self, fact: Fact[T]) -> T:
        """A fact.

        Raises:
            TypeError: The stages before this one have not found it.
        """
        if fact not in self.facts:
            raise TypeError(
                f"this stage needs the {fact.meaning or fact.name}, which no stage before it found"
            )
        value: T = self.facts[fact]
        return value

    def __contains__(self, fact: Fact[Any]) -> bool:
        return fact in self.facts

    @overload
    def get(self, fact: Fact[T]) -> T | None: ...
    @overload
    def get(self, fact: Fact[T], default: T) -> T: ...
    def get(self, fact: Fact[T], default: T | None = None) -> T | None:
        """A fact, the default where the case does not have it."""
        value: T | None = self.facts.get(fact, default)
        return value

    def add(self, fact: Fact[T], value: T) -> Case:
        """The case with one fact more, or another value of it."""
        return replace(self, facts={**self.facts, fact: value})

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that reject nothing."""
        return tuple(f for f in self.findings if not f.fatal)

    def noted(self, *findings: Finding) -> Case:
        """The case with what a gate found; the first fatal finding of all rejects it."""
        stop = self.stop
        fatal = next((f for f in findings if f.fatal), None)
        if stop is None and fatal is not None:
            stop = Stop(status="rejected", code=fatal.code, reason=fatal.message)
        return replace(self, findings=(*self.findings, *findings), stop=stop)
