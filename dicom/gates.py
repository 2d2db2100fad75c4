"""Quality gates: every reason for which a series is refused or warned about, and the header checks.

A gate has a stable code, a sentence, a severity and, where going on makes sense, can be overridden with
``--allow CODE``, which turns its rejection into a warning. A gate is declared where it is checked; here stand
those that `check_headers` applies, which needs headers only. The limits and why they are what they are stand
beside the constants.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import numpy.typing as npt

from ..system.names import safe_name
from .contrast import contrast_kind
from .headers import CT_IMAGE, ENHANCED_CT
from .series import (
    SAME_POSITION_MM,
    Finding,
    Series,
    SliceRef,
    distinct_positions,
    slice_normal,
    slice_positions,
)

MIN_SLICES = 20
"""Fewest slices. At the thickest increment allowed (5 mm) twenty cover 100 mm, about a heart's height."""

MIN_COVERAGE_MM = 80.0
"""Shortest stack, first to last slice, mm. An adult heart is about 120 mm high, so a shorter stack cannot
hold the coronary tree. Whether the heart really is inside is asked again once it has been segmented."""

MIN_THICKNESS_MM, MAX_THICKNESS_MM = 1.0, 5.0
"""SliceThickness, mm: the DeepCAC2 paper's selection from NLST."""

THICKNESS_TOLERANCE_MM = 0.05
"""Headers write 0.976 or 5.01 for a nominal 1 and 5 mm."""

THICK_MM = 3.0
"""Above this, mm, partial volume hides small calcifications; the Agatston score was defined at 3 mm."""

MAX_PIXEL_MM = 1.2
"""Largest edge of a pixel, mm. Our own limit: a scanner's full field of 500 mm has 0.98 mm at 512 pixels, and
the bundled weights were trained on 0.6 to 0.84 mm; on pixels of 2.8 and 4.2 mm they gave scores of 47 to 239
where the truth is 0."""

GAP_TOLERANCE = 0.1
"""A gap may differ from the increment by this share: the error that it makes in that slice's score."""

GAP_TOLERANCE_MM = 0.1
"""... or by this much, mm, where that is more: scanners round ImagePositionPatient to 0.1 mm."""

MAX_TILT_DEG = 1.0
"""Largest angle between the stack's direction and the slice normal: 5 mm of shear over 300 mm."""

MAX_OBLIQUE_DEG = 15.0
"""Largest angle between the slice axes and the patient's: more than any patient lies askew, less than any
planned oblique; the networks were trained on rotations up to this size."""

MAX_WANDER_MM = 1.0
"""How far a slice's corner may lie beside the line through the first and last slice's corners, mm."""

ORIENTATION_TOLERANCE = 0.005
"""Largest difference of a direction cosine between slices (0.3°): some writers round to two decimals."""

SPACING_TOLERANCE = 0.001
"""Largest relative difference of PixelSpacing between slices: half a pixel over 512."""

NOMINAL_KVP = 120.0


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One reason.

    Attributes:
        code: Stable, for programs and ``--allow``.
        sentence: What it means, for the user.
        fatal: Whether it rejects the series; otherwise it warns.
        overridable: Whether ``--allow CODE`` turns its rejection into a warning.
        caution: Whether its warning must stand beside the result wherever that is shown.
    """

    code: str
    sentence: str
    fatal: bool = True
    overridable: bool = False
    caution: bool = False

    def finding(self, message: str, *, allow: Collection[str] = (), fatal: bool | None = None) -> Finding:
        """What it has to say about one series; a rejection that can be overridden says how.

        Args:
            message: One sentence with this series' numbers.
            allow: Codes of gates that shall warn only.
            fatal: Severity where it is not the gate's own.
        """
        severe = self.fatal if fatal is None else fatal
        allowed = severe and self.overridable and self.code in allow
        if severe and self.overridable and not allowed:
            message = f"{message} (go on with --allow {self.code})"
        return Finding(
            code=self.code,
            message=message,
            fatal=severe and not allowed,
            allowed=allowed,
            caution=self.caution and not severe,
        )


GATES: dict[str, Gate] = {}
"""Every gate by code: those of headers first, in the order in which they are reported; further ones stand
where they are checked, and `pipeline.gates.gates` has them all."""


def register_gate(gate: Gate) -> Gate:
    """Make a gate known by its code.

    Raises:
        ValueError: Another one has its code.
    """
    if GATES.setdefault(gate.code, gate) != gate:
        raise ValueError(f"there are two gates {gate.code}")
    return gate


NOT_CT = register_gate(Gate(code="not-ct", sentence="The series holds no CT images."))
MIXED_IDENTITY = register_gate(
    Gate(code="mixed-identity", sentence="Its images name more than one patient or study.")
)
TRANSFER_INCOMPLETE = register_gate(
    Gate(
        code="transfer-incomplete",
        sentence="Not all of the series came as it was sent: a transfer to the node that listens broke off, "
        "images were refused or came again with other content, or files of a download cannot be read.",
        overridable=True,
    )
)
INSTANCE_UID = register_gate(
    Gate(
        code="instance-uid",
        sentence="Images have no SOPInstanceUID, or different ones share one: nothing can refer to them.",
    )
)
LOCALIZER = register_gate(
    Gate(code="localizer", sentence="The series is a localizer (scout, topogram, surview).")
)
SPECTRAL = register_gate(
    Gate(
        code="spectral",
        sentence="The images were computed for one energy or material from spectral data "
        "(mono-energetic, virtual non-contrast): their values are not those of a CT at 120 kV.",
        overridable=True,
    )
)
DERIVED = register_gate(
    Gate(
        code="derived",
        sentence="The images were derived from others (MPR, MIP, screen capture), not reconstructed "
        "from the scan.",
        overridable=True,
    )
)
ENHANCED_MULTIFRAME = register_gate(
    Gate(
        code="enhanced-multiframe",
        sentence="A multi-frame file does not say where each of its frames lies.",
    )
)
NO_GEOMETRY = register_gate(
    Gate(code="no-geometry", sentence="Position, orientation, spacing or size is missing or wrong.")
)
MIXED_SIZE = register_gate(Gate(code="mixed-size", sentence="The images differ in rows or columns."))
MIXED_SPACING = register_gate(Gate(code="mixed-spacing", sentence="The images differ in pixel spacing."))
MIXED_ORIENTATION = register_gate(
    Gate(code="mixed-orientation", sentence="The images differ in orientation.")
)
MIXED_POSITION = register_gate(
    Gate(code="mixed-position", sentence="The slices do not lie above one another.")
)
GANTRY_TILT = register_gate(
    Gate(
        code="gantry-tilt",
        sentence=f"The gantry was tilted: the stack is sheared by more than {MAX_TILT_DEG:g}°.",
    )
)
NOT_AXIAL = register_gate(
    Gate(
        code="not-axial",
        sentence=f"The slices are not axial, rows along left-right (within {MAX_OBLIQUE_DEG:g}°).",
    )
)
DUPLICATE_SLICES = register_gate(
    Gate(
        code="duplicate-slices",
        sentence="Several slices lie at one position: dropped with a warning where they are identical, "
        "else the series is rejected.",
    )
)
TOO_FEW_SLICES = register_gate(
    Gate(
        code="too-few-slices",
        sentence=f"Fewer than {MIN_SLICES} slices, or less than {MIN_COVERAGE_MM:g} mm covered.",
        overridable=True,
    )
)
TOO_THICK = register_gate(
    Gate(
        code="too-thick",
        sentence=f"Slice thickness or increment is above {MAX_THICKNESS_MM:g} mm.",
        overridable=True,
    )
)
TOO_THIN = register_gate(
    Gate(
        code="too-thin",
        sentence=f"Slice thickness is below {MIN_THICKNESS_MM:g} mm.",
        overridable=True,
    )
)
COARSE_PIXELS = register_gate(
    Gate(
        code="coarse-pixels",
        sentence=f"Pixels are larger than {MAX_PIXEL_MM:g} mm: the weights know finer ones, and find "
        "calcium where there is none.",
        overridable=True,
    )
)
MISSING_SLICES = register_gate(
    Gate(
        code="missing-slices",
        sentence="Slices are missing inside the stack.",
        overridable=True,
    )
)
UNEVEN_INCREMENTS = register_gate(
    Gate(
        code="uneven-increments",
        sentence=f"Slice positions are uneven (gaps differ by more than {GAP_TOLERANCE:.0%} "
        f"and {GAP_TOLERANCE_MM:g} mm).",
        overridable=True,
    )
)
MIXED_FRAME = register_gate(
    Gate(
        code="mixed-frame",
        sentence="The slices lie in more than one frame of reference.",
        overridable=True,
    )
)
MIXED_SCAN = register_gate(
    Gate(
        code="mixed-scan",
        sentence="The slices were taken on different days or in different positions of the patient.",
        overridable=True,
    )
)
CONTRAST = register_gate(
    Gate(
        code="contrast",
        sentence="The header names an intravenous contrast agent.",
        overridable=True,
    )
)
STRAY_IMAGES = register_gate(
    Gate(
        code="stray-images",
        sentence="What is no CT slice (localizer, screen capture, structure set, report) was left out.",
        fatal=False,
    )
)
DAMAGED_COPY = register_gate(
    Gate(
        code="damaged-copy",
        sentence="A damaged copy of an image was left out; the whole one beside it was used.",
        fatal=False,
    )
)
THICK_SLICES = register_gate(
    Gate(
        code="thick-slices",
        sentence=f"Slices thicker than {THICK_MM:g} mm: small calcifications may be missed.",
        fatal=False,
    )
)
KVP = register_gate(
    Gate(
        code="kvp",
        sentence=f"The tube voltage is not known to be {NOMINAL_KVP:g} kV, for which the Agatston "
        "threshold holds.",
        fatal=False,
    )
)
SHARP_KERNEL = register_gate(
    Gate(
        code="sharp-kernel",
        sentence="A sharp (lung or bone) kernel: noise and edges may raise the score.",
        fatal=False,
    )
)
MIXED_KERNEL = register_gate(
    Gate(
        code="mixed-kernel",
        sentence="The slices were reconstructed with different kernels.",
        fatal=False,
    )
)
LOSSY = register_gate(
    Gate(
        code="lossy",
        sentence="The images were compressed with loss: values differ from those that the scanner made.",
        fatal=False,
    )
)
ESCAPED_ID = register_gate(
    Gate(
        code="escaped-id",
        sentence="The PatientID holds characters that no folder name may hold; its folder is named "
        "otherwise.",
        fatal=False,
    )
)


def check_headers(series: Series, allow: Collection[str] = ()) -> tuple[Finding, ...]:
    """Apply every gate that needs headers only.

    Args:
        series: As discovered; its own findings are not looked at.
        allow: Codes of gates that shall warn instead of reject.

    Returns:
        Findings, fatal ones first, each in the order of `GATES`. A series that is no CT or a localizer has
        that one finding only: nothing else would tell more.
    """
    return _findings(_check(series), allow)


def check_grid(series: Series, allow: Collection[str] = ()) -> tuple[Finding, ...]:
    """Apply the header gates that ask for no DICOM object: how the slices lie, and what is known of the scan.

    For a scan that comes from elsewhere; arguments and result as in `check_headers`.
    """
    return _findings(_check_scan(series), allow)


def _findings(found: Iterator[_Result], allow: Collection[str]) -> tuple[Finding, ...]:
    order = list(GATES)
    findings = [gate.finding(message, allow=allow, fatal=fatal) for gate, message, fatal in found]
    return tuple(sorted(findings, key=lambda f: (not f.fatal, order.index(f.code))))


_Result = tuple[Gate, str, bool | None]


def _check(series: Series) -> Iterator[_Result]:
    """(gate, message, severity or None for the gate's own) of everything found."""
    slices = series.slices
    if series.modality != "CT" or not all(is_ct(s, series.modality) for s in slices):
        kind = f"modality {series.modality or 'unknown'}"
        yield NOT_CT, f"no CT images ({kind}); only CT is scored", None
        return
    if series.mixed_identity:
        yield MIXED_IDENTITY, "the images of this series name more than one patient or study", None
    yield from _check_instances(slices)
    if all(_is_localizer(s) for s in slices):
        yield LOCALIZER, "a localizer, not a scan", None
        return
    yield from _check_type(slices)
    yield from _check_left_out(series)

    yield from _check_one_scan(series)
    yield from _check_scan(series)


def _check_scan(series: Series) -> Iterator[_Result]:
    """The gates on how the scan was taken and how its slices lie."""
    slices = series.slices
    yield from _check_acquisition(series)

    if any(s.frames > 1 and s.frame is None for s in slices):
        yield ENHANCED_MULTIFRAME, "a multi-frame file does not say where each of its frames lies", None
        return
    missing = sum(not has_geometry(s) for s in slices)
    if missing:
        yield (
            NO_GEOMETRY,
            f"{missing} of {len(slices)} images have no usable position, orientation, spacing or size",
            None,
        )
        return
    yield from _check_thickness(series)
    pixel = max(max(s.pixel_spacing) for s in slices if s.pixel_spacing)
    if pixel > MAX_PIXEL_MM:
        yield COARSE_PIXELS, f"pixels are {pixel:.3g} mm, at most {MAX_PIXEL_MM:g} mm are scored", None
    mixed = list(_check_mixed(slices))
    yield from mixed
    if not mixed:
        yield from _check_stack(series)


def _check_instances(slices: tuple[SliceRef, ...]) -> Iterator[_Result]:
    """Each image needs a SOPInstanceUID of its own: the SEG, the SR and their readers find it by that. Copies
    of a file share it and lie at one position; frames of one file share it."""
    nameless = sum(not s.sop_instance_uid for s in slices)
    if nameless:
        text = f"{nameless} of {len(slices)} images have no SOPInstanceUID: results could not refer to them"
        yield INSTANCE_UID, text, None
        return
    files: dict[tuple[str, int | None], list[SliceRef]] = defaultdict(list)
    for s in slices:
        files[s.sop_instance_uid, s.frame].append(s)
    shared = sum(len(same) for same in files.values() if not _at_one_place(same))
    if shared:
        yield (
            INSTANCE_UID,
            f"{shared} of {len(slices)} images share a SOPInstanceUID with another: results could not refer "
            "to them; export the series anew",
            None,
        )


def _at_one_place(refs: list[SliceRef]) -> bool:
    places = [
        r.position for r in refs if r.position is not None
    ]  # where there is none, `no-geometry` says so
    return len(places) < 2 or bool((np.ptp(np.asarray(places), axis=0) < SAME_POSITION_MM).all())


def _check_left_out(series: Series) -> Iterator[_Result]:
    uids = {s.sop_instance_uid for s in series.slices}
    copies = sum(r.sop_instance_uid in uids and not has_geometry(r) for r in series.left_out)
    strays = len(series.left_out) - copies
    if strays:
        text = f"{strays} localizers, screen captures or objects that are no CT were left out of the series"
        yield STRAY_IMAGES, text, None
    if copies:
        yield (
            DAMAGED_COPY,
            f"{copies} copies of images were cut off in their header; the whole images were used",
            None,
        )


_LOCALIZER_WORDS = ("LOCALIZER", "SCOUT", "SURVIEW", "TOPOGRAM", "SCANOGRAM")
_CAPTURE_WORDS = ("SCREEN SAVE", "SCREENSAVE", "SCREENSHOT", "DOSE_INFO", "PATIENT_INFO")
_DERIVED_WORDS = re.compile(
    r"MPR|CPR|MIP|MINIP|M(AX|IN|EAN)_IP|AVERAGE|PROJECTION|REFORMAT|VRT|CURVED|PERFUSION|SUBTRACT"
)
"""In ImageType from its third value on; DICOM's terms (PS3.3 C.8.15.2.1) and vendors' own."""
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""SOP class Secondary Capture Image; its multi-frame kinds add a further component (PS3.4 B.5)."""


def is_ct(ref: SliceRef, modality: str) -> bool:
    """Whether an image of this modality is one of a CT by its SOP class, or a screen capture."""
    known = (CT_IMAGE, *ENHANCED_CT, "")
    return modality == "CT" and (ref.sop_class_uid in known or _is_capture(ref))


def _is_localizer(ref: SliceRef) -> bool:
    return any(word in value.upper() for value in ref.image_type for word in _LOCALIZER_WORDS)


def _is_capture(ref: SliceRef) -> bool:
    return ref.sop_class_uid.startswith(SECONDARY_CAPTURE) or any(
        word in value.upper() for value in ref.image_type for word in _CAPTURE_WORDS
    )


def is_stray(ref: SliceRef) -> bool:
    """Whether an image is no slice by its type: a localizer or a screen capture."""
    return _is_localizer(ref) or _is_capture(ref)


_SPECTRAL_TYPES = re.compile(
    r"\b(?:VMI|MONO(?:E|PLUS|ENERGETIC)? ?\d*(?: ?KEV)?|\d{2,3} ?KEV|VNC|VNCA|VNI|VUE|VIRTUAL\w*|UNENHANCED"
    r"|MAT [A-Z]+|EFF ATOMIC NUM|Z EFF\w*|ZEFF|ELECTRON DENSITY|RHO Z|IODINE\w*|WATER|CALCIUM SUPP\w*"
    r"|PURE(?:IODINE|CALCIUM|LUMEN))\b"
)
"""In ImageType from its third value on, ``_`` and ``-`` read as spaces. The terms of value 4 (PS3.3
C.8.2.1.1.1 and C.8.15.2.1.1.5, from Supplement 188): VMI, MAT_SPECIFIC, MAT_REMOVED, MAT_FRACTIONAL,
MAT_MODIFIED, MAT_VALUE_BASED, EFF_ATOMIC_NUM, ELECTRON_DENSITY. Then makers' own names of such images: of
one energy MONO_40KEV, MonoPlus, MonoE; virtual non-contrast, non-iodine and unenhanced VNC, VNI, VUE; of a
material iodine, water, PureLumen. Incomplete by nature. A mere word for two energies (DUAL, GSI) is none:
scanners write it into ordinary images as well."""
_SPECTRAL_WORDS = re.compile(
    r"\b(?:\d{2,3} ?KEV|VMI|VNC|MONO ?(?:E|PLUS|ENERGETIC)|VIRTUAL (?:NON|UN|MONO)\w*)\b"
)
"""The same in SeriesDescription, where many scanners say it alone: fewer words, as people write there."""
_SPECTRAL_RESCALE = ("HU_MOD",)
"""RescaleType: modified Hounsfield Units (PS3.3 C.11.1.1.2)."""


def spectral_sign(
    ref: SliceRef, *, series_description: str = "", rescale_type: str = "", energy_kev: str = ""
) -> str:
    """What of an image's header says that it was computed for one energy or material, "" where nothing does.

    Args:
        ref: Its ImageType is read.
        series_description, rescale_type: SeriesDescription and RescaleType.
        energy_kev: MonoenergeticEnergyEquivalent (0018,937C), keV.
    """
    values = [v.upper().replace("_", " ").replace("-", " ") for v in ref.image_type[2:]]
    if any(_SPECTRAL_TYPES.search(value) for value in values):
        return "ImageType " + "\\".join(ref.image_type)
    if rescale_type.upper() in _SPECTRAL_RESCALE:
        return f"RescaleType {rescale_type}"
    if energy_kev:
        return f"an energy of {energy_kev} keV"
    said = _SPECTRAL_WORDS.search(series_description.upper().replace("_", " ").replace("-", " "))
    return f"SeriesDescription {series_description}" if said else ""


def _check_type(slices: tuple[SliceRef, ...]) -> Iterator[_Result]:
    captured = sum(_is_capture(s) for s in slices)
    if captured:
        yield DERIVED, f"{captured} of {len(slices)} images are screen captures", None
        return
    types = Counter(s.image_type for s in slices)
    for image_type, count in types.most_common():
        values = [v.strip().upper() for v in image_type]
        derived = values[:1] == ["DERIVED"]
        reworked = any(_DERIVED_WORDS.search(v) for v in values[2:])
        if reworked or (derived and values[1:2] == ["SECONDARY"]):
            name = "\\".join(image_type)
            yield (
                DERIVED,
                f"{count} of {len(slices)} images are derived ({name})",
                None,
            )
            return
    if any(values[:1] == ("DERIVED",) for values in types):
        yield DERIVED, "the images are marked as derived, though not as MPR or MIP", False


MIDNIGHT_MINUTES = 60
"""A scan may begin before midnight and end after it, minutes; the longest chest CT takes less. Chosen."""


def _check_one_scan(series: Series) -> Iterator[_Result]:
    """Whether the slices are of one scan.

    A radiologist measures in one scan only: the patient on the table in one position, taken at one go. Slices
    in two positions (supine and prone, or turned round on the table), or of two days, are of two scans put
    under one UID, in which heart and calcium may stand twice or in part; so they are rejected, except where a
    scan ran over midnight. Two frames of reference have no common origin: the slices' places cannot be
    compared. All may be allowed, as some tools that remove names give every file its own UID or date.
    """
    if series.frames_of_reference > 1:
        text = f"its slices lie in {series.frames_of_reference} frames of reference"
        yield MIXED_FRAME, f"{text}: their places cannot be compared", None
    if len(series.patient_positions) > 1:
        positions = ", ".join(series.patient_positions)
        yield MIXED_SCAN, f"the patient lay in different positions ({positions}): these are two scans", None
    days = sorted({moment[:8] for moment in series.acquired})
    if len(days) > 1:
        over_midnight = _minutes(*series.acquired) <= MIDNIGHT_MINUTES
        text = f"taken from {days[0]} to {days[-1]}"
        said = "over midnight, it seems" if over_midnight else "these are two scans"
        yield MIXED_SCAN, f"{text}: {said}", False if over_midnight else None


def _minutes(first: str, last: str) -> float:
    """From one moment (YYYYMMDDHHMMSS, fractions and more ignored) to another; infinite where the time of day
    is not known."""
    try:
        begin, end = (datetime.strptime(moment[:12], "%Y%m%d%H%M") for moment in (first, last))
    except ValueError:
        return math.inf
    return (end - begin).total_seconds() / 60


def _check_acquisition(series: Series) -> Iterator[_Result]:
    agent = named_contrast(series)
    if agent == "oral":
        yield CONTRAST, "the header names an oral contrast agent", False
    elif agent:
        given = " by ".join(filter(None, (series.contrast_agent, series.contrast_route)))
        amount = "" if given or series.contrast_volume_ml is None else f"{series.contrast_volume_ml:g} mL"
        yield CONTRAST, f"the header names a contrast agent: {(given or amount)[:60]}", None
    if series.spectral:
        yield SPECTRAL, f"computed from spectral data, not an ordinary CT image: {series.spectral}", None
    if series.lossy:
        yield LOSSY, "compressed with loss: small calcium may be gone, and other may have been made", None
    if len(series.kvps) > 1:
        volts = " and ".join(f"{v:g}" for v in series.kvps)
        yield KVP, f"its slices were taken at {volts} kV: they do not score alike", None
    elif series.kvp is None:
        yield KVP, f"the tube voltage is not in the header; {NOMINAL_KVP:g} kV is assumed", None
    elif abs(series.kvp - NOMINAL_KVP) > 0.5:
        lower = "lower" if series.kvp > NOMINAL_KVP else "higher"
        yield (
            KVP,
            f"taken at {series.kvp:g} kV: HU of calcium and score are {lower} than at {NOMINAL_KVP:g} kV",
            None,
        )
    if series.patient_id and safe_name(series.patient_id) != series.patient_id:
        text = (
            f"the PatientID cannot name a folder as it is; its results lie in {safe_name(series.patient_id)}"
        )
        yield ESCAPED_ID, text, None
    kernels = series.kernels or (series.kernel,)
    if len(kernels) > 1:
        text = f"its slices were reconstructed with different kernels ({', '.join(kernels)})"
        yield MIXED_KERNEL, f"{text}: they do not score alike", None
    for kernel in filter(is_sharp_kernel, kernels):
        text = f"reconstructed with the sharp kernel {kernel}: noise and edges may raise the score"
        yield SHARP_KERNEL, text, None
        break


def transfer_incomplete(series: Series, why: str, *, allow: Collection[str] = ()) -> Series:
    """A series with the finding that not all of it came.

    It stands before what the other gates found, which is of a part of the series and may be because of that.
    """
    finding = TRANSFER_INCOMPLETE.finding(why, allow=allow)
    ordered = sorted((finding, *series.findings), key=lambda f: not f.fatal)
    return replace(series, findings=tuple(ordered))


def named_contrast(series: Series) -> str:
    """The contrast agent that any slice's header names: ``"intravenous"``, ``"oral"`` or ``""``."""
    return contrast_kind(series.contrast_agent, series.contrast_route, series.contrast_volume_ml)


_SHARP_NAMES = re.compile(r"(?i)(lung|bone(plus)?\d?|edge|ultra|y?[def]|yl|l|fc(3|5|8)\d.*)")
"""GE LUNG, BONE, BONEPLUS, EDGE, ULTRA; Philips D, E, F (also YD, YE), L; Canon FC30-39, FC50-59 and FC80-89
(bone and lung). Vendors' kernel lists; incomplete by nature."""

_SIEMENS = re.compile(r"(?i)(?!FC)[a-z]{1,2}(\d\d)[a-z]?")
"""Siemens: letters for the kind, two digits that grow with sharpness, a letter for the variant: B30f, Br64d.
From 50 on they are meant for lung and bone."""


def is_sharp_kernel(kernel: str) -> bool:
    """Whether a ConvolutionKernel is one made for lung or bone.

    Args:
        kernel: As in the header; of several values (Siemens: kernel and strength) the first counts.

    >>> [is_sharp_kernel(k) for k in ("BONE", "B70f", "Bl57d\\\\3", "FC51", "L", "D")]
    [True, True, True, True, True, True]
    >>> [is_sharp_kernel(k) for k in ("STANDARD", "B30f", "Br40d\\\\3", "FC12", "B", "C", "")]
    [False, False, False, False, False, False, False]
    """
    first = kernel.split("\\")[0].strip()
    siemens = _SIEMENS.fullmatch(first)
    if siemens:
        return int(siemens[1]) >= 50
    return bool(_SHARP_NAMES.fullmatch(first))


def has_geometry(ref: SliceRef) -> bool:
    """Whether position, orientation, spacing and size are there and usable."""
    spacing = ref.pixel_spacing
    return bool(
        ref.position is not None
        and slice_normal(ref.orientation) is not None
        and spacing is not None
        and min(spacing) > 0
        and ref.rows
        and ref.columns
    )


def is_thick(thickness_mm: float) -> bool:
    """Whether slices are so thick, mm, that a zero may be partial volume; `THICK_MM` itself is."""
    return thickness_mm >= THICK_MM - THICKNESS_TOLERANCE_MM


def _check_thickness(series: Series) -> Iterator[_Result]:
    """Thickness and increment. Overlapping slices of 1 mm at 0.7 mm are not too thin: noise and partial
    volume follow the thickness. The increment stands in where SliceThickness is absent."""
    thicknesses = [s.slice_thickness for s in series.slices if s.slice_thickness]
    increment = series.increment
    thickest = max((t for t in (*thicknesses, increment) if t is not None), default=None)
    thinnest = min(thicknesses, default=increment)
    if thickest is not None and thickest > MAX_THICKNESS_MM + THICKNESS_TOLERANCE_MM:
        what = "slices" if thicknesses and max(thicknesses) == thickest else "slice positions"
        apart = "thick" if what == "slices" else "apart"
        yield (
            TOO_THICK,
            f"{what} are {thickest:g} mm {apart}, at most {MAX_THICKNESS_MM:g} mm are scored",
            None,
        )
    elif thickest is not None and thickest > THICK_MM + THICKNESS_TOLERANCE_MM:
        yield THICK_SLICES, f"slices are {thickest:g} mm thick: small calcifications may be missed", None
    if thinnest is not None and thinnest < MIN_THICKNESS_MM - THICKNESS_TOLERANCE_MM:
        yield (
            TOO_THIN,
            f"slices are {thinnest:g} mm thick, at least {MIN_THICKNESS_MM:g} mm are scored",
            None,
        )


def _check_mixed(slices: tuple[SliceRef, ...]) -> Iterator[_Result]:
    sizes = Counter((s.rows, s.columns) for s in slices)
    if len(sizes) > 1:
        listed = ", ".join(
            f"{count} of {rows} x {columns}" for (rows, columns), count in sizes.most_common(3)
        )
        yield MIXED_SIZE, f"images differ in size: {listed}", None
    spacings = np.array([s.pixel_spacing for s in slices])
    if (np.ptp(spacings, axis=0) > SPACING_TOLERANCE * spacings.min()).any():
        low, high = spacings.min(), spacings.max()
        yield MIXED_SPACING, f"images differ in pixel spacing: {low:g} to {high:g} mm", None
    orientations = np.array([s.orientation for s in slices])
    if (np.ptp(orientations, axis=0) > ORIENTATION_TOLERANCE).any():
        kinds = len(np.unique(orientations.round(2), axis=0))
        yield MIXED_ORIENTATION, f"images have {kinds} different orientations", None


def _check_stack(series: Series) -> Iterator[_Result]:
    """Gates on the stack of slices; all have geometry and share size, spacing and orientation."""
    slices = series.slices
    normal, positions = slice_normal(slices[0].orientation), slice_positions(slices)
    if normal is None or positions is None:  # excluded by the caller
        return
    distinct = distinct_positions(positions)
    repeated = len(slices) - len(distinct)
    if repeated:
        yield (
            DUPLICATE_SLICES,
            f"{repeated} of {len(slices)} slices lie where another does; read pixels decide: "
            "identical ones are dropped, else the series is rejected",
            False,
        )
    covered = float(distinct[-1] - distinct[0])
    if len(distinct) < MIN_SLICES or covered < MIN_COVERAGE_MM:
        yield (
            TOO_FEW_SLICES,
            f"{len(distinct)} slice positions over {covered:.0f} mm; needed are {MIN_SLICES} over "
            f"{MIN_COVERAGE_MM:g} mm",
            None,
        )
    yield from _check_line(series, normal)
    if series.increment is not None:
        yield from _check_gaps(distinct, series.increment)


def _check_line(series: Series, normal: npt.NDArray[np.float64]) -> Iterator[_Result]:
    """Direction of the slices and of the stack. With a tilted gantry the slices are oblique as well; the
    tilt is the reason to name."""
    corners = np.asarray([s.position for s in series.slices], dtype=np.float64)
    along = corners[-1] - corners[0]
    length = float(along @ normal)
    if length > SAME_POSITION_MM:
        tilt = _angle(along, normal)
        if tilt > MAX_TILT_DEG:
            yield GANTRY_TILT, f"the stack is sheared by {tilt:.1f}° (tilted gantry)", None
            return
        beside = corners - corners[0] - np.outer((corners - corners[0]) @ normal / length, along)
        wander = float(np.linalg.norm(beside, axis=1).max())
        if wander > MAX_WANDER_MM:
            yield MIXED_POSITION, f"slices lie up to {wander:.1f} mm beside one another", None
    normal_off = _angle(normal, np.array([0, 0, 1.0]))
    row_off = _angle(np.asarray(series.slices[0].orientation)[:3], np.array([1.0, 0, 0]))
    if max(row_off, normal_off) > MAX_OBLIQUE_DEG:
        yield (
            NOT_AXIAL,
            f"the slice normal lies {normal_off:.0f}° off the body axis, rows {row_off:.0f}° off left-right",
            None,
        )
    if series.gantry_tilt is not None and abs(series.gantry_tilt) > MAX_TILT_DEG:
        yield (
            GANTRY_TILT,
            f"the header names a gantry tilt of {series.gantry_tilt:g}°, but the slices lie straight "
            "above one another",
            False,
        )


def _check_gaps(distinct: npt.NDArray[np.float64], increment: float) -> Iterator[_Result]:
    gaps = np.diff(distinct)
    tolerance = max(GAP_TOLERANCE * increment, GAP_TOLERANCE_MM)
    steps = np.maximum(np.rint(gaps / increment), 1)
    uneven = np.abs(gaps - steps * increment) > tolerance
    drift = np.abs(distinct - distinct[0] - increment * np.concatenate([[0], np.cumsum(steps)])).max()
    if uneven.any() or drift > 0.5 * increment:
        yield (
            UNEVEN_INCREMENTS,
            f"slices are {gaps.min():.2f} to {gaps.max():.2f} mm apart, mostly {increment:.2f}",
            None,
        )
    else:
        missing = int(steps.sum() - len(gaps))
        if missing:
            yield (
                MISSING_SLICES,
                f"slices missing: {missing} (gap of {gaps.max():.2f} mm, else {increment:.2f})",
                None,
            )


def _angle(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Angle between two lines, degrees in [0, 90]: the direction's sign does not count."""
    cosine = abs(float(a @ b)) / float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.degrees(np.arccos(min(1.0, cosine))))
