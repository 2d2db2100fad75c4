"""`Writer`: all that the pipeline knows of a file that a series may leave behind.

A writer is registered once, in the module that defines it; `step.steps` finds these with the steps. It is a
part of one module of the workflow: whoever runs that module gets all of its files for which the case has what
they need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..system.atomic import output_errors
from .case import Case, Fact
from .step import Context, Need, images, load_all, one_of_each

ORGANIZER = "DataOrganizer"
"""The module that every workflow ends with."""


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A file that is written for a series.

    Attributes:
        name: In `Case.outputs`.
        file: Its name in the folder of the series, where the workflow does not say another.
        write: Writes it to a path, from the case, the options of its module and the context; False where
            there is nothing to write after all.
        needs: What the case must have for it, as for `Step.reads`.
        uses: What it looks at where the case has it.
        beside: Names of outputs that must have been written before.
        module: The module of the workflow that writes it.
        option: Of that module, under which mhubio's workflows name the file; "" for none.
        query: mhubio's data type of it, by which targets of the workflow name it; "" for none.
        keep: Only where ``--keep`` has this word, or a target of the workflow names it; "": always.
    """

    name: str
    file: str
    write: Callable[[Path, Case, Any, Context], bool | None]
    needs: tuple[Need, ...] = ()
    uses: tuple[Fact[Any], ...] = ()
    beside: tuple[str, ...] = ()
    module: str = ORGANIZER
    option: str = ""
    query: str = ""
    keep: str = ""

    def fits(self, case: Case) -> bool:
        """Whether a case gets it, if it shall be kept."""
        found = all(any(fact in case for fact in need) for need in one_of_each(self.needs))
        return found and all(name in case.outputs for name in self.beside)


_WRITERS: dict[str, Writer] = {}
_OF_IMAGES: list[Callable[[Fact[Any]], Writer]] = []


def register_writer(writer: Writer) -> Writer:
    """Make a writer known.

    Raises:
        ValueError: Another one has its name.
    """
    if writer.name in _WRITERS:
        raise ValueError(f"there are two writers {writer.name}")
    _WRITERS[writer.name] = writer
    return writer


def register_for_images(of: Callable[[Fact[Any]], Writer]) -> None:
    """Make a writer known for every fact that is an image (`step.images`)."""
    _OF_IMAGES.append(of)


@cache
def writers() -> Mapping[str, Writer]:
    """All writers by name, in the order in which they are registered; those of images last."""
    load_all()
    of_images = {w.name: w for of in _OF_IMAGES for fact in images().values() for w in [of(fact)]}
    return MappingProxyType({**_WRITERS, **of_images})


def queries() -> dict[str, str]:
    """mhubio's data types of the files that its modules hand on, and the names of their writers."""
    load_all()
    return {w.query: w.name for w in _WRITERS.values() if w.query and not w.keep}


def targets() -> dict[str, str]:
    """mhubio's data types that a target of a workflow may name, and the names of their writers.

    Those of `queries`, and the images. It asks the steps for these, so that no step's default options may.
    """
    return {writer.query: writer.name for writer in writers().values() if writer.query}


def of_module(module: str) -> Iterator[Writer]:
    """The files that a module writes."""
    return (writer for writer in writers().values() if writer.module == module)


def written(
    case: Case, files: Iterable[Writer], place: Callable[[Writer], Path], options: Any, context: Context
) -> Case:
    """The case with those of some files that it has what they need for, written where `place` says.

    Args:
        options: Of the module that writes them.
    """
    for writer in files:
        if writer.fits(case):
            path = place(writer)
            with output_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            if writer.write(path, case, options, context) is not False:
                case = replace(case, outputs={**case.outputs, writer.name: path})
    return case


def kept() -> tuple[str, ...]:
    """The words that ``--keep`` may have."""
    return tuple(sorted({writer.keep for writer in writers().values()} - {""}))
