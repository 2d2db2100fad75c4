"""CT and masks as NIfTI files, where ``--keep nifti`` asks for them.

Of a scan that is itself a NIfTI or NRRD file, the masks are written in any case, in its own format: there are
no DICOM images that a SEG could refer to.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ..imaging import Volume
from ..imaging.files import write_image
from ..imaging.labels import Labels
from ..imaging.scan_files import NIFTI, NRRD
from ..pipeline.case import Case, Fact
from ..pipeline.facts import GEOMETRY
from ..pipeline.image_series import ImageSeries
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


def _mask(form: str, ending: str, fact: Fact[Any]) -> Writer:
    """Of a scan that is a file of this format."""
    assert fact.image is not None
    classes, name = fact.image.classes, fact.image.name.removesuffix(".nii.gz") + ending

    def write(path: Path, case: Case, options: Any, context: Context) -> bool:
        of_this = isinstance(case.series, ImageSeries) and case.series.format == form
        fits = bool(classes) and of_this and path not in case.outputs.values()  # --keep may have written it
        if fits:
            write_fact(path, fact, case)
        return fits

    return Writer(name=f"{form.lower()}-mask-{fact.name}", file=name, write=write, needs=(GEOMETRY, fact))


register_for_images(_nifti)
register_for_images(partial(_mask, NIFTI, ".nii.gz"))
register_for_images(partial(_mask, NRRD, ".nrrd"))
