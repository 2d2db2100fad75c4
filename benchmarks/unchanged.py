"""Show that a change of the code leaves the results alone.

Usage::

    python benchmarks/unchanged.py write BEFORE.json FOLDER [FOLDER ...] [--simulate 20]
    python benchmarks/unchanged.py compare BEFORE.json AFTER.json

``write`` runs every workflow over the folders of DICOM, and over so many simulated patients, and notes each
value of the table and of the JSON files, and a digest of each element of the SEG and SR, of the pixels of
the previews and of the NIfTI files. ``compare`` names what differs between two such notes: nothing, where
the code of both gives the same results. Times, and the UIDs and versions that name a run, are left out; new
keys and columns are counted, not taken for a difference.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk

WORKFLOWS = ("default,screening,direct", "cascade")
"""Runs; the workflows of one are done together."""
ALLOWED = ("--allow", "coarse-pixels")
"""Small simulated scans have coarse pixels."""
VOLATILE_KEYS = {"seconds", "deepcac2", "deepcac2_version", "device", "workflow_fingerprint"}
VOLATILE_ELEMENTS = {
    *(
        "InstanceCreationDate",
        "InstanceCreationTime",
        "ContentDate",
        "ContentTime",
        "SeriesDate",
        "SeriesTime",
    ),
    *("SOPInstanceUID", "SeriesInstanceUID", "SoftwareVersions", "VerificationDateTime", "DateTime", "UID"),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write")
    write.add_argument("notes", type=Path)
    write.add_argument("folders", type=Path, nargs="*")
    write.add_argument("--simulate", type=int, default=20, metavar="N")
    compare = commands.add_parser("compare")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    args = parser.parse_args()
    if args.command == "compare":
        return report(json.loads(args.before.read_text()), json.loads(args.after.read_text()))
    notes: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folders = list(args.folders)
        if args.simulate:
            folders.append(Path(scratch) / "simulated")
            deepcac2("simulate", folders[-1], "--patients", args.simulate, "--seed", 100, "--size", 256)
        for folder in folders:
            for workflow in WORKFLOWS:
                out = Path(scratch) / "results" / folder.name / workflow
                options = ("--workflow", workflow, "--devices", "cpu", "--keep", "nifti", "--quiet", *ALLOWED)
                deepcac2("run", folder, out, *options)
                notes |= {f"{folder.name}/{workflow}/{key}": value for key, value in digest(out)}
    args.notes.write_text(json.dumps(notes, indent=0, sort_keys=True))
    print(f"{len(notes)} values noted")
    return 0


def deepcac2(*command: object) -> None:
    """Run the command line; exit code 1 says that some series were rejected or failed."""
    code = subprocess.run([sys.executable, "-m", "deepcac2", *map(str, command)], check=False).returncode
    if code not in (0, 1):
        raise SystemExit(f"deepcac2 {command[0]}: exit code {code}")


def digest(results: Path) -> Iterator[tuple[str, object]]:
    """Every value that a results folder holds, by file and key."""
    for path in sorted(results.rglob("*")):
        name = path.relative_to(results).as_posix()
        if "logs" in path.relative_to(results).parts or not path.is_file():
            continue
        if path.name == "results.csv":
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    for key, value in row.items():
                        if key not in VOLATILE_KEYS:
                            yield f"{name}/{row['series_uid']}/{key}", value
        elif path.name == "run.json":
            continue
        elif path.suffix == ".json":
            yield from values(json.loads(path.read_text(encoding="utf-8")), name)
        elif path.suffix == ".dcm":
            yield from elements(pydicom.dcmread(path), name)
        elif path.suffix == ".png" or path.name.endswith(".nii.gz"):
            yield (
                name,
                sha256(np.ascontiguousarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path)))).tobytes()),
            )


def values(tree: object, at: str) -> Iterator[tuple[str, object]]:
    """The leaves of a JSON document."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key not in VOLATILE_KEYS:
                yield from values(value, f"{at}/{key}")
    elif isinstance(tree, list) and any(isinstance(item, (dict, list)) for item in tree):
        for index, item in enumerate(tree):
            yield from values(item, f"{at}/{index}")
    else:
        yield at, tree


def elements(ds: pydicom.Dataset, at: str) -> Iterator[tuple[str, object]]:
    """Digests of a data set's elements at its top level."""
    for element in ds:
        if element.keyword in VOLATILE_ELEMENTS:
            continue
        if element.VR == "SQ":
            content = "".join(str(value) for _, value in nested(element.value))
        else:
            content = element.value if isinstance(element.value, bytes) else str(element.value)
        yield (
            f"{at}/{element.keyword or element.tag}",
            sha256(content if isinstance(content, bytes) else content.encode()),
        )


def nested(items: object) -> Iterator[tuple[str, object]]:
    for index, item in enumerate(items):  # type: ignore[arg-type, var-annotated]
        yield from elements(item, str(index))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def report(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Print what differs; 1 where something does."""
    gone = sorted(before.keys() - after.keys())
    differing = sorted(key for key in before.keys() & after.keys() if before[key] != after[key])
    for key in gone:
        print(f"gone: {key}: {before[key]}")
    for key in differing:
        print(f"differs: {key}: {before[key]} -> {after[key]}")
    print(
        f"{len(before)} values before, {len(after)} after: {len(differing)} differ, {len(gone)} are gone, "
        f"{len(after.keys() - before.keys())} are new"
    )
    return 1 if gone or differing else 0


if __name__ == "__main__":
    raise SystemExit(main())
