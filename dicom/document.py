"""A page about a series as DICOM: Encapsulated PDF, or Secondary Capture, beside its SEG and SR."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    PYDICOM_IMPLEMENTATION_UID,
    UID,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from ..system.atomic import write_whole
from .derived import INHERITED, content_time_of, encoded_once, inherited, nameless, reference_to
from .files import Upto
from .seg.reader import open_segmentation
from .series import Series, SliceRef

PDF_NUMBER, CAPTURE_NUMBER = 9003, 9004
"""SeriesNumbers: after those of SEG and SR."""


def write_encapsulated_pdf(
    path: Path,
    pdf: bytes,
    *,
    series: Series,
    derived: Path,
    title: str,
    algorithm_name: str = "deepcac2",
    version: str,
) -> None:
    """Write a PDF file as DICOM (PS3.3 A.45.1); the same content is the same file.

    Patient and study are those of the SEG, which has them from the CT; dates and UIDs are as in the SR.

    Args:
        path: File to write.
        pdf: The PDF file.
        series: The CT.
        derived: The DICOM SEG of the series, from which the PDF is made.
        title: Of the document and its series, ASCII.
        algorithm_name, version: What made it.

    Raises:
        InputUnreadable: `derived` cannot be read or is no DICOM SEG.
        DiskFull, OutputUnwritable: The file cannot be written.
    """
    dataset, seg = _begun(series, derived, EncapsulatedPDFStorage, "PDF", title, algorithm_name, version)
    dataset.Modality, dataset.SeriesNumber = "DOC", PDF_NUMBER
    dataset.AcquisitionDateTime = ""
    dataset.DocumentTitle = title
    dataset.ConceptNameCodeSequence = []
    dataset.VerificationFlag = "UNVERIFIED"
    mask = SliceRef(path=Path(), sop_class_uid=str(seg.SOPClassUID), sop_instance_uid=str(seg.SOPInstanceUID))
    dataset.SourceInstanceSequence = [reference_to(mask)]
    dataset.MIMETypeOfEncapsulatedDocument = "application/pdf"
    dataset.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
    dataset.EncapsulatedDocumentLength = len(pdf)
    write_whole(path, encoded_once(dataset, *content_time_of(seg)))


def write_secondary_capture(
    path: Path,
    pages: Sequence[npt.NDArray[np.uint8]],
    *,
    series: Series,
    derived: Path,
    title: str,
    algorithm_name: str = "deepcac2",
    version: str,
) -> None:
    """Write pages, one below the other, as one image (PS3.3 A.8.1); see `write_encapsulated_pdf`.

    Args:
        pages: uint8 (rows, columns, 3) each, RGB, of one width.
    """
    kind = SecondaryCaptureImageStorage
    dataset, seg = _begun(series, derived, kind, "SC", title, algorithm_name, version)
    image = np.concatenate(list(pages))
    dataset.Modality, dataset.SeriesNumber = "OT", CAPTURE_NUMBER
    dataset.ImageType, dataset.BodyPartExamined = ["DERIVED", "SECONDARY"], "HEART"
    dataset.PatientOrientation = ""
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.Rows, dataset.Columns = image.shape[:2]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelRepresentation = 0
    data = image.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    write_whole(path, encoded_once(dataset, *content_time_of(seg)))


def _begun(
    series: Series, derived: Path, kind: UID, suffix: str, title: str, name: str, version: str
) -> tuple[Dataset, Dataset]:
    """What both have in common, and the header of the SEG."""
    tags = ("SOPClassUID", "SOPInstanceUID", "ContentDate", "ContentTime", *INHERITED)
    with open_segmentation(derived, upto=Upto.HEADER, tags=tags) as opened:
        seg = opened.dataset
    dataset = nameless()
    dataset.ReferringPhysicianName = ""
    dataset.update(inherited(seg))
    dataset.preamble = b"\0" * 128
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.FileMetaInformationGroupLength = 0  # pydicom fills it in
    dataset.file_meta.FileMetaInformationVersion = b"\0\1"
    dataset.file_meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = kind
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[series.series_uid, name, suffix])
    dataset.SeriesDescription = title
    dataset.InstanceNumber = 1
    dataset.Manufacturer = dataset.ManufacturerModelName = name
    dataset.SoftwareVersions, dataset.DeviceSerialNumber = version, "0"
    dataset.ConversionType = "WSD"
    dataset.BurnedInAnnotation = "YES"
    return dataset, seg
