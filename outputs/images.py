"""CT and masks as NIfTI files, where ``--keep nifti`` asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..imaging.files import write_image
from ..pipeline.case import Case, Fact
from ..pipeline.facts import CT, GEOMETRY
from ..pipeline.step import Context
from ..pipeline.writer import Writer, register_for_images


def write_fact(path: Path, fact: Fact[Any], case: Case) -> None:
    """Write an image of a case: the CT in HU, a mask as 0 and 1.

    Raises:
        DiskFull, OutputUnwritable: It cannot be written.
    """
    array = case[CT].hu if fact == CT else case[fact]
    write_image(path, array.astype("uint8") if array.dtype == bool else array, case[GEOMETRY])


def _nifti(fact: Fact[Any]) -> Writer:
    def write(path: Path, case: Case, options: Any, context: Context) -> None:
        write_fact(path, fact, case)

    assert fact.image is not None
    return Writer(
        name=f"nifti-{fact.name}", file=fact.image.name, write=write, needs=(GEOMETRY, fact), keep="nifti"
    )


register_for_images(_nifti)
