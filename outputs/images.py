"""CT and masks as NIfTI files, where ``--keep nifti`` asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..imaging import Volume
from ..imaging.files import write_image
from ..imaging.labels import Labels
from ..pipeline.case import Case, Fact
from ..pipeline.facts import GEOMETRY
from ..pipeline.step import Context
from ..pipeline.writer import Writer, register_for_images


def write_fact(path: Path, fact: Fact[Any], case: Case) -> None:
    """Write an image of a case: the CT in HU, labels by their values.

    Raises:
        DiskFull, OutputUnwritable: It cannot be written.
    """
    found = case[fact]
    array = found.hu if isinstance(found, Volume) else found.array if isinstance(found, Labels) else found
    write_image(path, array, case[GEOMETRY])


def _nifti(fact: Fact[Any]) -> Writer:
    def write(path: Path, case: Case, options: Any, context: Context) -> None:
        write_fact(path, fact, case)

    assert fact.image is not None
    return Writer(
        name=f"nifti-{fact.name}", file=fact.image.name, write=write, needs=(GEOMETRY, fact), keep="nifti"
    )


register_for_images(_nifti)
