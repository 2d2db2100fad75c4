"""Synthetic CT series, written with plain pydicom."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def phantom(shape: tuple[int, int, int] = (28, 12, 10), seed: int = 0) -> npt.NDArray[np.int16]:
    """Random HU in [-1000, 1500], every slice different."""
    return np.random.default_rng(seed).integers(-1000, 1500, shape).astype(np.int16)


class CTWriter:
    """Writes a CT series; `position` and `stored` are kept so that tests need not trust the reader."""

    def __init__(self) -> None:
        self.series_uid = generate_uid()
        self.study_uid = generate_uid()
        self.frame_of_reference = generate_uid()

    def image(
        self,
        stored: npt.NDArray[Any],
        position: Sequence[float],
        *,
        number: int = 1,
        slope: float = 1.0,
        intercept: float = 0.0,
        orientation: Sequence[float] = AXIAL,
        spacing: tuple[float, float] = (0.8, 0.7),
        thickness: float = 3.0,
        bits_stored: int = 16,
    ) -> Dataset:
        """One CT image; `stored` is int16 or uint16 (rows, columns)."""
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, generate_uid()
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.SeriesInstanceUID, ds.StudyInstanceUID = self.series_uid, self.study_uid
        ds.FrameOfReferenceUID = self.frame_of_reference
        ds.PatientID, ds.PatientName, ds.Modality = "P1", "Doe^Jane", "CT"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.Manufacturer, ds.ConvolutionKernel, ds.KVP = "Maker", "STANDARD", 120
        ds.InstanceNumber = number
        ds.ImagePositionPatient = [round(float(p), 6) for p in position]
        ds.ImageOrientationPatient = [round(float(c), 8) for c in orientation]
        ds.PixelSpacing, ds.SliceThickness = list(spacing), thickness
        ds.Rows, ds.Columns = stored.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, bits_stored, bits_stored - 1
        ds.PixelRepresentation = int(stored.dtype.kind == "i")
        ds.RescaleSlope, ds.RescaleIntercept = slope, intercept
        ds.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
        return ds

    def write(
        self,
        folder: Path,
        hu: npt.NDArray[np.int16],
        *,
        increment: float = 3.0,
        origin: tuple[float, float, float] = (-10.0, -20.0, -30.0),
        orientation: Sequence[float] = AXIAL,
        edit: Callable[[int, Dataset], None] | None = None,
        reverse: bool = False,
        **image: Any,
    ) -> list[Path]:
        """Write `hu` (z, y, x), z along row × column direction, as one file a slice; returns their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        normal = np.cross(orientation[:3], orientation[3:])
        paths = []
        for i, pixels in enumerate(hu):
            number = len(hu) - i if reverse else i + 1
            position = np.asarray(origin) + i * increment * normal
            ds = self.image(pixels, position, number=number, orientation=orientation, **image)
            if edit is not None:
                edit(i, ds)
            paths.append(folder / f"im{number:04d}")
            ds.save_as(paths[-1], enforce_file_format=True)
        return paths

    def write_enhanced(self, path: Path, hu: npt.NDArray[np.int16], *, broken: bool = False) -> None:
        """One Enhanced CT file, frames in reverse order, each with its own intercept."""
        frames = hu[::-1]
        intercepts = [-1000 - i for i in range(len(frames))]
        stored = np.stack([f.astype(np.int32) - b for f, b in zip(frames, intercepts, strict=True)])
        ds = self.image(stored[0].astype(np.uint16), (0, 0, 0))
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
                        "RescaleSlope", "RescaleIntercept", "KVP", "ConvolutionKernel"):  # fmt: skip
            delattr(ds, keyword)
        ds.NumberOfFrames = len(frames)
        ds.PixelData = stored.astype("<u2").tobytes()

        def group(**values: Any) -> DicomSequence:
            item = Dataset()
            for keyword, value in values.items():
                setattr(item, keyword, value)
            return DicomSequence([item])

        shared = Dataset()
        shared.PixelMeasuresSequence = group(PixelSpacing=[0.8, 0.7], SliceThickness=3.0)
        shared.PlaneOrientationSequence = group(ImageOrientationPatient=list(AXIAL))
        shared.CTXRayDetailsSequence = group(KVP=100)
        shared.CTReconstructionSequence = group(ConvolutionKernel="B60f")
        ds.SharedFunctionalGroupsSequence = DicomSequence([shared])
        per_frame = []
        for i, intercept in enumerate(intercepts):
            item = Dataset()
            z = (len(frames) - 1 - i) * 3.0
            item.PlanePositionSequence = group(ImagePositionPatient=[1.0, 2.0, z])
            item.PixelValueTransformationSequence = group(
                RescaleSlope=1, RescaleIntercept=intercept, RescaleType="HU"
            )
            per_frame.append(item)
        if not broken:
            ds.PerFrameFunctionalGroupsSequence = DicomSequence(per_frame)
        ds.save_as(path, enforce_file_format=True)


@pytest.fixture
def ct() -> CTWriter:
    """A writer of one CT series."""
    return CTWriter()


@pytest.fixture
def hu() -> npt.NDArray[np.int16]:
    """Random HU (28, 12, 10); at 3 mm the stack passes every gate."""
    return phantom()


def _run_tool(name: str, *arguments: str, cwd: Path | None = None) -> str:
    program = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip(f"needs the program {name}")
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, check=False, timeout=60, cwd=cwd
    )
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def run_tool() -> Callable[..., str]:
    """Output of a program from the system or the virtual environment; skips where it is not installed."""
    return _run_tool


@pytest.fixture(scope="session")
def assert_valid() -> Callable[[Path, str], None]:
    """Lets dciodvfy judge a file that must be of this IOD."""

    def check(path: Path, iod: str) -> None:
        output = _run_tool("dciodvfy", str(path))
        assert iod in output
        assert [line for line in output.splitlines() if line.startswith(("Error", "Abort"))] == []

    return check
