"""Do the tests see it? Changes the code in one place at a time and runs the tests that should notice.

    .venv/bin/python benchmarks/mutations.py            # all of them
    .venv/bin/python benchmarks/mutations.py gates seg  # those whose name holds one of these words

Works on a copy of the checkout. Prints a line for each mutation, *killed* or *survived*, and exits with the
number of survivors. A mutation whose place is no longer in the code is an error: bring it up to date.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutation:
    """One change: in `file`, `before` (which stands there once) becomes `after`; `tests` should notice."""

    name: str
    file: str
    before: str
    after: str
    tests: str


SCORE, GATES, CALCIUM = "tests/scoring", "tests/dicom/test_gates.py", "tests/models/test_calcium.py"
READING, SEG = "tests/dicom/test_reading.py", "tests/dicom/test_segmentation.py"
STAGES, ANATOMY = "tests/pipeline/test_stages.py", "tests/pipeline/test_anatomy.py"
CAUTIONS, RESULTS = (f"tests/pipeline/test_{name}.py" for name in ("cautions", "results"))
OUTPUTS = "tests/outputs/test_outputs.py"

MUTATIONS = (
    Mutation(
        "scoring: size tolerance",
        "scoring/agatston.py",
        "tolerance = 1 - 1e-9",
        "tolerance = 1 + 1e-9",
        SCORE,
    ),
    Mutation(
        "scoring: area limit is inclusive",
        "scoring/agatston.py",
        "pixel_area >= rule.min_area_mm2 * tolerance",
        "pixel_area > rule.min_area_mm2",
        SCORE,
    ),
    Mutation(
        "scoring: weight limits are inclusive",
        "scoring/agatston.py",
        'side="right")]',
        'side="left")]',
        SCORE,
    ),
    Mutation(
        "scoring: weights of the rule",
        "scoring/agatston.py",
        "np.array([0, *weights], dtype=np.int64)",
        "np.arange(len(limits) + 1, dtype=np.int64)",
        SCORE,
    ),
    Mutation(
        "scoring: threshold is inclusive",
        "scoring/agatston.py",
        "(hu >= rule.threshold)",
        "(hu > rule.threshold)",
        SCORE,
    ),
    Mutation(
        "scoring: increment, not thickness",
        "scoring/agatston.py",
        "return increment / REFERENCE_THICKNESS_MM",
        "return 1.0",
        SCORE,
    ),
    Mutation(
        "gates: coarse pixels",
        "dicom/gates.py",
        "if pixel > MAX_PIXEL_MM:",
        "if pixel > 2 * MAX_PIXEL_MM:",
        GATES,
    ),
    Mutation(
        "gates: kVp tolerance",
        "dicom/gates.py",
        "abs(series.kvp - NOMINAL_KVP) > 0.5",
        "abs(series.kvp - NOMINAL_KVP) > 5",
        GATES,
    ),
    Mutation(
        "gates: sign of the thickness tolerance",
        "dicom/gates.py",
        "thickest > MAX_THICKNESS_MM + THICKNESS_TOLERANCE_MM",
        "thickest > MAX_THICKNESS_MM - THICKNESS_TOLERANCE_MM",
        GATES,
    ),
    Mutation(
        "gates: sign of the thinness tolerance",
        "dicom/gates.py",
        "thinnest < MIN_THICKNESS_MM - THICKNESS_TOLERANCE_MM",
        "thinnest < MIN_THICKNESS_MM + THICKNESS_TOLERANCE_MM",
        GATES,
    ),
    Mutation(
        "gates: negative gantry tilt",
        "dicom/gates.py",
        "abs(series.gantry_tilt) > MAX_TILT_DEG",
        "series.gantry_tilt > MAX_TILT_DEG",
        GATES,
    ),
    Mutation(
        "gates: fewest slices",
        "dicom/gates.py",
        "len(distinct) < MIN_SLICES or",
        "len(distinct) <= MIN_SLICES or",
        GATES,
    ),
    Mutation(
        "gates: uneven increments",
        "dicom/gates.py",
        "tolerance = max(GAP_TOLERANCE * increment, GAP_TOLERANCE_MM)",
        "tolerance = 2 * max(GAP_TOLERANCE * increment, GAP_TOLERANCE_MM)",
        GATES,
    ),
    Mutation(
        "gates: mixed spacing",
        "dicom/gates.py",
        "> SPACING_TOLERANCE * spacings.min()",
        "> 20 * SPACING_TOLERANCE * spacings.min()",
        GATES,
    ),
    Mutation(
        "gates: thick zeros",
        "dicom/gates.py",
        "thickness_mm >= THICK_MM - THICKNESS_TOLERANCE_MM",
        "thickness_mm > THICK_MM + THICKNESS_TOLERANCE_MM",
        CAUTIONS,
    ),
    Mutation(
        "calcium: bound of the patch skipping",
        "models/calcium/network.py",
        ">= THRESHOLD - _ROUNDING]",
        ">= THRESHOLD + 0.1]",
        CALCIUM,
    ),
    Mutation(
        "calcium: threshold",
        "models/calcium/network.py",
        "found = low >= THRESHOLD",
        "found = low > THRESHOLD",
        CALCIUM,
    ),
    Mutation(
        "calcium: peak is inclusive",
        "models/calcium/network.py",
        "(probability[box] >= peak)",
        "(probability[box] > peak)",
        CALCIUM,
    ),
    Mutation(
        "calcium: the mask below 130 HU",
        "models/calcium/network.py",
        "sure_lesions(found, counted, low, peak)",
        "sure_lesions(counted, counted, low, peak)",
        CALCIUM,
    ),
    Mutation(
        "calcium: what is brought back",
        "models/calcium/network.py",
        "over = (mean >= THRESHOLD)",
        "over = (mean >= THRESHOLD + 0.2)",
        CALCIUM,
    ),
    Mutation(
        "seg: coronary is needed",
        "dicom/seg/codes.py",
        "bool(said & _CALCIUM_WORDS and said & _CORONARY_WORDS)",
        "bool(said & _CALCIUM_WORDS)",
        SEG,
    ),
    Mutation(
        "seg: other words are not calcium",
        "dicom/seg/codes.py",
        "by_label = coronary and said <= _CALCIUM_WORDS | _CORONARY_WORDS | _WORDS_BESIDE",
        "by_label = coronary or said <= _CALCIUM_WORDS | _CORONARY_WORDS | _WORDS_BESIDE",
        SEG,
    ),
    Mutation(
        "stages: excluded",
        "models/rule_out/step.py",
        "self.exclude and not found.positive",
        "self.exclude and found.positive",
        STAGES,
    ),
    Mutation(
        "stages: an excluded scan is not looked at",
        "models/calcium/step.py",
        "if case.get(EXCLUDED):",
        "if False:",
        STAGES,
    ),
    Mutation(
        "stages: heart cut at the last slice",
        "models/heart/step.py",
        "max(np.count_nonzero(heart[0]), np.count_nonzero(heart[-1]))",
        "np.count_nonzero(heart[0])",
        STAGES,
    ),
    Mutation(
        "stages: no chest",
        "models/heart/step.py",
        "against[0] == NO_CHEST:",
        "against[0] == HEART_CUT_OFF:",
        STAGES,
    ),
    Mutation(
        "anatomy: broken slices by rows alone",
        "models/heart/step.py",
        "_has_plain_line(hu[:, ys]) | _has_plain_line",
        "_has_plain_line(hu[:, ys]) & _has_plain_line",
        ANATOMY,
    ),
    Mutation(
        "anatomy: upside down",
        "models/heart/anatomy.py",
        "return float(above - below)",
        "return float(below - above)",
        ANATOMY,
    ),
    Mutation(
        "anatomy: air around the body",
        "models/heart/anatomy.py",
        "lung[z] &= ~within",
        "lung[z] &= within | ~within",
        ANATOMY,
    ),
    Mutation(
        "anatomy: one lung is not enough",
        "models/heart/anatomy.py",
        "if max(right, left) < MIN_LUNG_AT_ALL",
        "if min(right, left) < -1",
        ANATOMY,
    ),
    Mutation(
        "previews: coronal z-flip",
        "outputs/preview.py",
        "marked.max(axis=1)[::-1]",
        "marked.max(axis=1)",
        OUTPUTS,
    ),
    Mutation(
        "previews: what counted",
        "pipeline/scoring.py",
        "marked=coloured(case) or calcium_labels(result.counted),",
        "marked=coloured(case) or case[CALCIUM],",
        OUTPUTS,
    ),
    Mutation(
        "results: CSV formulas",
        "pipeline/results.py",
        '("=", "+", "-", "@", "\\t", "\\r")',
        '("=",)',
        RESULTS,
    ),
    Mutation(
        "reading: padding above -900 HU",
        "dicom/reading.py",
        "PLAUSIBLE_PADDING_HU = -900",
        "PLAUSIBLE_PADDING_HU = 100",
        READING,
    ),
)


def noticed(mutation: Mutation, copy: Path) -> bool:
    """Whether the tests fail with the mutation; the copy is as before afterwards."""
    path = copy / mutation.file
    original = path.read_text(encoding="utf-8")
    if original.count(mutation.before) != 1:
        raise SystemExit(
            f"{mutation.name}: {mutation.before!r} stands {original.count(mutation.before)} times"
        )
    path.write_text(original.replace(mutation.before, mutation.after), encoding="utf-8")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", mutation.tests],
            cwd=copy, env={**os.environ, "PYTHONPATH": str(copy / ".dev")}, capture_output=True, check=False,
        )  # fmt: skip
    finally:
        path.write_text(original, encoding="utf-8")
    if done.returncode not in (0, 1):
        raise SystemExit(
            f"{mutation.name}: pytest ended with {done.returncode}: {done.stdout.decode()[-500:]}"
        )
    return done.returncode == 1


def main(words: list[str]) -> int:
    """Run the mutations whose name holds one of the words, or all; the number of survivors."""
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "deepcac2"
        skip = shutil.ignore_patterns(".git", ".venv", "build", "demo", "__pycache__", "*_cache")
        shutil.copytree(ROOT, copy, symlinks=True, ignore=skip)
        if (shared := ROOT.parent / "shared").is_dir():
            (Path(folder) / "shared").symlink_to(shared)
        for mutation in MUTATIONS:
            if words and not any(word in mutation.name for word in words):
                continue
            started = time.monotonic()
            killed = noticed(mutation, copy)
            survivors += not killed
            verdict = "killed  " if killed else "SURVIVED"
            print(f"{verdict} {mutation.name} ({time.monotonic() - started:.0f} s)", flush=True)
    print(f"{survivors} survived")
    return survivors


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
