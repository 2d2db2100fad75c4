"""Writing simulated patients: a CT series, its true segmentation, and the true score."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from .. import __version__
from ..imaging.volume import PADDING_HU
from ..system.atomic import output_errors, write_whole
from .patient import SimulatedPatient

logger = logging.getLogger(__name__)

INTERCEPT = -1024
"""RescaleIntercept: stored value = HU + 1024, as most scanners write it."""
PADDING_STORED = -2000
"""Stored value outside the reconstruction circle, the one GE scanners use."""


def patient_id(seed: int) -> str:
    """PatientID and folder name of a simulated patient, e.g. ``SIM-0007``."""
    return f"SIM-{seed:04d}"


def write_patient(patient: SimulatedPatient, folder: Path) -> Path:
    """Write one patient below `folder`; the patient's folder appears when it is complete.

    ::

        folder/SIM-0001/ct/0001.dcm      CT Image Storage, one file a slice
        folder/SIM-0001/truth.seg.dcm    DICOM SEG: heart, coronary calcium, calcium of each artery
        folder/SIM-0001/truth.json       seed, acquisition, lesions, true score

    UIDs follow from the seed and the grid: the same patient on the same grid is the same series.

    Returns:
        The patient's folder.

    Raises:
        DiskFull, OutputUnwritable: A file cannot be written, or the patient is there already.
    """
    from ..dicom import discover, write_segmentation
    from ..scoring import score

    name = patient_id(int(patient.facts["seed"]))
    home = folder / name
    partial = folder / f".{name}.partial"
    geometry = patient.volume.geometry
    with output_errors(home):
        shutil.rmtree(partial, ignore_errors=True)
        write_series(patient, partial / "ct")
    series = discover(partial / "ct").series[0]
    write_segmentation(
        partial / "truth.seg.dcm",
        series=series,
        geometry=geometry,
        heart=patient.heart,
        calcium=patient.calcium,
        parts=(patient.arteries,),
        algorithm_name="deepcac2 simulator",
        algorithm_version=__version__,
    )
    true = score(patient.volume, patient.calcium, rule="agatston")
    truth = {
        "patient_id": name,
        "series_uid": series.series_uid,
        "score": true.total,
        "risk_group": int(true.risk_group),
        "calcium_volume_mm3": true.volume_mm3,
        "heart_volume_ml": float(patient.heart.sum() * geometry.voxel_volume / 1000),
        "simulator_version": __version__,
        **patient.facts,
    }
    write_whole(partial / "truth.json", (json.dumps(truth, indent=2) + "\n").encode())
    with output_errors(home):
        partial.rename(home)
    logger.info("wrote a simulated patient of %d slices", geometry.shape[0])
    return home


def write_series(
    patient: SimulatedPatient, folder: Path, *, change: Callable[[Dataset], None] | None = None
) -> None:
    """Write the CT as one DICOM file a slice, ``0001.dcm`` being the lowest array index.

    Args:
        change: Called with each slice's header before it is written.

    Raises:
        DiskFull, OutputUnwritable: A file cannot be written.
    """
    geometry = patient.volume.geometry
    common = _common(patient)
    normal = np.asarray(geometry.axes[0])
    padding = np.zeros(geometry.shape[1:], dtype=bool)
    if patient.facts["acquisition"]["padding_circle"]:
        padding = (patient.volume.hu == PADDING_HU).all(axis=0)
    with output_errors(folder):
        folder.mkdir(parents=True)
        for i in range(geometry.shape[0]):
            ds = Dataset()
            ds.update(common)
            ds.SOPInstanceUID = generate_uid(entropy_srcs=[str(common.SeriesInstanceUID), str(i)])
            ds.InstanceNumber = i + 1
            position = geometry.to_lps([float(i), 0.0, 0.0])
            ds.ImagePositionPatient = [_decimal(v) for v in position]
            ds.SliceLocation = _decimal(float(position @ normal))
            stored: npt.NDArray[np.int16] = patient.volume.hu[i] - np.int16(INTERCEPT)
            stored[padding] = PADDING_STORED
            ds.PixelData = stored.astype("<i2").tobytes()
            if change is not None:
                change(ds)
            ds.file_meta = FileMetaDataset()
            ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
            ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            ds.save_as(folder / f"{i + 1:04d}.dcm", enforce_file_format=True)


def _common(patient: SimulatedPatient) -> Dataset:
    """What all slices share (DICOM PS3.3 A.3.3, CT Image IOD)."""
    geometry, scan = patient.volume.geometry, patient.facts["acquisition"]
    seed = int(patient.facts["seed"])
    version = patient.facts["simulator"]
    who = ["deepcac2 simulator", __version__, str(seed), *([f"version {version}"] if version > 1 else [])]
    grid = [*who, repr(geometry), repr(scan)]
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SOPClassUID = CTImageStorage
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20000101"
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = "120000"
    ds.AccessionNumber = ""
    ds.Modality = "CT"
    ds.Manufacturer = scan["manufacturer"]
    ds.ManufacturerModelName = scan["model"]
    ds.DeviceSerialNumber = "0"
    ds.SoftwareVersions = __version__
    ds.ReferringPhysicianName = ""
    ds.StudyDescription = "Simulated low-dose chest CT"
    ds.SeriesDescription = f"Simulated chest {scan['thickness_mm']:g} mm {scan['kernel']}"
    ds.PatientName = f"Simulated^{seed:04d}"
    ds.PatientID = patient_id(seed)
    ds.PatientBirthDate = ""
    ds.PatientSex = ""
    ds.BodyPartExamined = "CHEST"
    ds.KVP = _decimal(scan["kvp"])
    ds.SliceThickness = _decimal(scan["thickness_mm"])
    ds.ReconstructionDiameter = _decimal(scan["field_of_view_mm"])
    ds.GantryDetectorTilt = 0
    ds.ConvolutionKernel = scan["kernel"]
    ds.PatientPosition = "HFS"
    ds.StudyInstanceUID = generate_uid(entropy_srcs=[*who, "study"])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=[*grid, "series"])
    ds.FrameOfReferenceUID = generate_uid(entropy_srcs=[*who, "frame"])
    ds.StudyID = "1"
    ds.SeriesNumber = 1
    ds.AcquisitionNumber = 1
    ds.PositionReferenceIndicator = ""
    ds.ImageOrientationPatient = [_decimal(v) for v in (*geometry.axes[2], *geometry.axes[1])]
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = geometry.shape[1:]
    ds.PixelSpacing = [_decimal(v) for v in geometry.spacing[1:]]
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelRepresentation = 1
    if scan["padding_circle"]:
        ds.PixelPaddingValue = PADDING_STORED
    ds.WindowCenter, ds.WindowWidth = 40, 400
    ds.RescaleIntercept, ds.RescaleSlope = INTERCEPT, 1
    ds.RescaleType = "HU"
    return ds


def _decimal(value: float) -> str:
    """A DICOM decimal string: at most 16 characters."""
    text = f"{float(value):.10g}"
    return text if len(text) <= 16 else f"{float(value):.8f}"[:16]
