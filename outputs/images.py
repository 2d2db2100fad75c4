"""CT and masks as NIfTI and NRRD files, where ``--keep nifti``, ``--keep nrrd`` or a target asks for them.

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


_ENDINGS = {"nifti": ".nii.gz", "nrrd": ".nrrd"}
"""By mhubio's name of the file type, which is also the word for ``--keep``."""
_FORMATS = {"nifti": NIFTI, "nrrd": NRRD}
"""What such a file is called where it is a scan."""


def _writer(kind: str, fact: Fact[Any]) -> Writer:
    """The writer of one image in one of the formats."""

    def write(path: Path, case: Case, options: Any, context: Context) -> None:
        write_fact(path, fact, case)

    image = fact.image
    assert image is not None
    return Writer(
        name=f"{kind}-{fact.name}",
        file=image.name.removesuffix(".nii.gz") + _ENDINGS[kind],
        write=write,
        needs=(GEOMETRY, fact),
        query=f"{kind}:{image.query.partition(':')[2]}",
        keep=kind,
    )


def _mask(kind: str, fact: Fact[Any]) -> Writer:
    """The writer of a mask for scans that are themselves files of this format."""
    assert fact.image is not None
    classes, name = fact.image.classes, fact.image.name.removesuffix(".nii.gz") + _ENDINGS[kind]

    def write(path: Path, case: Case, options: Any, context: Context) -> bool:
        of_this = isinstance(case.series, ImageSeries) and case.series.format == _FORMATS[kind]
        fits = bool(classes) and of_this and path not in case.outputs.values()  # --keep may have written it
        if fits:
            write_fact(path, fact, case)
        return fits

    return Writer(name=f"{kind}-mask-{fact.name}", file=name, write=write, needs=(GEOMETRY, fact))


for _kind in _ENDINGS:
    register_for_images(partial(_writer, _kind))
for _kind in _ENDINGS:
    register_for_images(partial(_mask, _kind))
