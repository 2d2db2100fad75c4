"""Measure scoring and DICOM SEG on a series of 140 slices of 512².

Usage: ``python benchmarks/scoring.py [--repeats 7]``

The masks are made up: a heart of 110 mm, and 40 calcifications in it. Budgets: 30 ms for a score, 0.4 s
for writing the SEG. Best of the repeats.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from deepcac2.dicom import Series, SliceRef, read_segmentation, write_segmentation
from deepcac2.imaging import Geometry, Volume
from deepcac2.scoring import RULES, score

SHAPE = (140, 512, 512)
SPACING = (2.5, 0.7, 0.7)


def best(work: Callable[[], object], repeats: int) -> float:
    """Shortest wall time of several calls, milliseconds."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def make_case() -> tuple[Volume, np.ndarray, np.ndarray]:
    """CT, heart and calcium."""
    rng = np.random.default_rng(0)
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    heart = ((z - 70) * 2.5) ** 2 + ((y - 260) * 0.7) ** 2 + ((x - 270) * 0.7) ** 2 < 55**2
    calcium = np.zeros(SHAPE, dtype=bool)
    for _ in range(40):
        cz, cy, cx = rng.integers((55, 215, 225), (85, 305, 315))
        size = rng.integers(1, 5)
        calcium[cz : cz + 2, cy : cy + size + 1, cx : cx + 2 * size] = True
    hu = np.full(SHAPE, 40, np.int16)
    hu[calcium] = rng.integers(100, 700, int(calcium.sum()))
    return (
        Volume(hu=hu, geometry=Geometry(shape=SHAPE, spacing=SPACING, origin=(-180, -180, 0))),
        heart,
        calcium,
    )


def make_series(folder: Path, geometry: Geometry) -> Series:
    """A series of which only the first header exists: the writer reads no other."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, "1.2.3.1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.4", "1.2.3", "1.2.5"
    ds.save_as(folder / "ct.dcm", enforce_file_format=True)
    slices = tuple(
        SliceRef(
            path=folder / "ct.dcm",
            sop_class_uid=CTImageStorage,
            sop_instance_uid=f"1.2.3.{z + 1}",
            position=(-180.0, -180.0, 2.5 * z),
            orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
            slice_thickness=3.0,
        )
        for z in range(geometry.shape[0])
    )
    return Series(series_uid="1.2.3", slices=slices)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    repeats: int = parser.parse_args().repeats

    volume, heart, calcium = make_case()
    for rule in RULES:
        took = best(lambda r=rule: score(volume, calcium, rule=r, slice_thickness=3.0), repeats)  # type: ignore[misc]
        print(f"score {rule:12s} {took:7.1f} ms")
    took = best(lambda: score(volume, heart | calcium), repeats)
    print(f"score with a whole heart as mask {took:7.1f} ms")
    with tempfile.TemporaryDirectory() as name:
        series = make_series(Path(name), volume.geometry)
        path = Path(name) / "seg.dcm"

        def write(mask: np.ndarray) -> None:
            write_segmentation(
                path,
                series=series,
                geometry=volume.geometry,
                heart=heart,
                calcium=mask,
                algorithm_version="0",
            )

        print(f"write SEG, no calcium {best(lambda: write(np.zeros_like(calcium)), repeats):7.1f} ms")
        print(f"write SEG             {best(lambda: write(calcium), repeats):7.1f} ms")
        print(
            f"read SEG              {best(lambda: read_segmentation(path, volume.geometry), repeats):7.1f} ms"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
