"""What we hand over without its patient: CT images, our SEG and SR, after DICOM's Basic Application Level
Confidentiality Profile (PS3.15 E, table E.1-1).

Nothing is kept that is not named here. An attribute passes as a number, as a UID that gets a new one, as a
sequence of such, or as one of a few words; whatever else a file holds (private attributes, descriptions,
names, addresses, dates, the history of changes, comments in compressed pixels) is left out, or has an empty
or meaningless value where DICOM wants one. An object of a kind that is not known here is refused, and so is
one that cannot be understood without what would have to go.

Of the profile's options three are used: the texts of a report are replaced by our own (Clean Structured
Content), as are the descriptions of SEG and SR (Clean Descriptors); nothing else is retained. Dates and times
are removed. UIDs and PatientID follow from a key, see `pseudonyms`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from itertools import chain
from typing import Any

from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sr.codedict import Collection
from pydicom.sr.coding import Code
from pydicom.tag import Tag
from pydicom.uid import (
    PYDICOM_IMPLEMENTATION_UID,
    Comprehensive3DSRStorage,
    CTImageStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pydicom.valuerep import DSfloat

from ..errors import InputUnreadable, NotDeidentified
from ..imaging import labels
from ..system.foreign import foreign
from . import structured_report
from .contrast import INTRAVENOUS, NONE, contrast_kind
from .derived import decimal
from .files import Upto, encoding_of, limits_of, read_slice
from .headers import MALFORMED, quiet_pydicom, text, texts
from .pseudonyms import Pseudonyms
from .reading import clean_cells, padding_range
from .seg import codes
from .series import SliceRef

PICTURES = (EncapsulatedPDFStorage, SecondaryCaptureImageStorage)
"""SOP classes of ours whose pixels or pages show the patient's data: they are never handed over."""
KINDS = (CTImageStorage, SegmentationStorage, Comprehensive3DSRStorage)
"""SOP classes that can be handed over."""

_REMOVED = "Removed"
_NO_DATE, _NO_TIME = "19000101", "000000"

# --- what is kept of an attribute -------------------------------------------------------------------------

_EMPTY = (
    *("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
"""Attributes that each of these objects must have, and that may be empty (type 2; action Z of the table)."""

_NUMBERS_OF_IMAGES = frozenset(
    {
        # identity of the image in its series
        *("SeriesNumber", "InstanceNumber", "AcquisitionNumber"),
        # geometry
        *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"),
        *("SpacingBetweenSlices", "SliceLocation", "GantryDetectorTilt", "ReconstructionDiameter"),
        # pixels and their meaning
        *("SamplesPerPixel", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"),
        *("PixelRepresentation", "RescaleIntercept", "RescaleSlope", "WindowCenter", "WindowWidth"),
        "LossyImageCompressionRatio",
        # technique, which warnings and scores depend on
        *(
            "KVP",
            "XRayTubeCurrent",
            "ExposureTime",
            "Exposure",
            "ContrastBolusVolume",
            "DataCollectionDiameter",
        ),
    }
)
_NUMBERS = _NUMBERS_OF_IMAGES | frozenset(
    {
        "NumberOfFrames",
        # segments
        *("SegmentNumber", "ReferencedSegmentNumber", "ReferencedFrameNumber", "MaximumFractionalValue"),
        *("RecommendedDisplayCIELabValue", "DimensionIndexValues", "DimensionIndexPointer"),
        "FunctionalGroupPointer",
        # reports
        *("NumericValue", "FloatingPointValue", "GraphicData"),
    }
)
_UIDS = frozenset(
    {
        *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
        *("ReferencedSOPClassUID", "ReferencedSOPInstanceUID", "DimensionOrganizationUID", "UID"),
        "ReferencedFrameOfReferenceUID",
    }
)
_ITEMS = frozenset(
    {
        # references
        *("ReferencedSeriesSequence", "ReferencedInstanceSequence", "SourceImageSequence"),
        *("DerivationImageSequence", "SourceInstanceSequence", "ReferencedSOPSequence"),
        *("CurrentRequestedProcedureEvidenceSequence", "PredecessorDocumentsSequence"),
        # frames and segments
        *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "PixelMeasuresSequence"),
        *("PlanePositionSequence", "PlaneOrientationSequence", "FrameContentSequence"),
        *("SegmentIdentificationSequence", "DimensionOrganizationSequence", "DimensionIndexSequence"),
        *("SegmentSequence", "SegmentationAlgorithmIdentificationSequence"),
        # reports
        *("MeasuredValueSequence", "ContentTemplateSequence", "CodingSchemeIdentificationSequence"),
        *("ReferencedPerformedProcedureStepSequence", "PerformedProcedureCodeSequence"),
    }
)
_CODES = frozenset(
    {
        *("SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence"),
        *("AnatomicRegionSequence", "DerivationCodeSequence", "PurposeOfReferenceCodeSequence"),
        *("AlgorithmFamilyCodeSequence", "ConceptNameCodeSequence", "ConceptCodeSequence"),
        "MeasurementUnitsCodeSequence",
    }
)
"""Sequences of codes: each is one that we know, and means what we know."""

_REFUSE = "\0"
"""In place of what stands for another word: the object cannot be understood without it."""
VERSION = r"\d{1,4}(\.\d{1,4}){0,3}(\.?(a|b|rc|dev|post)\d{1,4})?"
_MAKERS = (
    *("GE MEDICAL SYSTEMS", "GE Healthcare", "SIEMENS", "Siemens Healthineers", "Philips"),
    *("Philips Medical Systems", "TOSHIBA", "TOSHIBA_MEC", "Canon Medical Systems", "CANON_MEC", "Hitachi"),
    *("Hitachi Medical Corporation", "FUJIFILM Corporation", "NeuroLogica", "UIH", "Neusoft", "deepcac2"),
)
KERNEL = re.compile(
    r"(STANDARD|SOFT|DETAIL|CHEST|LUNG\d?|BONE(PLUS)?\d?|EDGE|ULTRA|Y?[A-FL]|FC\d\d|"
    r"[BDHIJQSTU][A-Za-z]?\d\d[a-z]?)(\\[1-5])?"
)
"""Names of kernels of GE, Philips, Canon and Siemens, the last with a strength."""
_IMAGE_TYPE = r"AXIAL|ORIGINAL|PRIMARY|DERIVED|HELIX|HELICAL|CT_SOM\d|REFORMATTED|AVERAGE|MPR|MIN_IP|MAX_IP"
_SCHEMES = r"DCM|SCT|SRT|UCUM|UMLS|RFC5646|99DEEPCAC2"
_SEGMENT_LABELS = ("Heart", "Coronary calcium", *codes.PART_LABELS)

_WORDS: dict[str, tuple[str, str | None]] = {
    "Modality": ("CT|SEG|SR", _REFUSE),
    "PhotometricInterpretation": ("MONOCHROME[12]", _REFUSE),
    "RescaleType": ("HU|US|", _REFUSE),
    "LossyImageCompression": ("00|01", None),
    "LossyImageCompressionMethod": ("ISO_10918_1|ISO_14495_1|ISO_15444_1", None),
    "BurnedInAnnotation": ("NO", _REFUSE),
    "PatientPosition": ("[HF]F[SP]|[HF]FD[LR]", ""),
    "BodyPartExamined": ("CHEST|HEART|THORAX|LUNG|CHESTABDOMEN|CHESTABDPELVIS", None),
    "PresentationLUTShape": ("IDENTITY|INVERSE", None),
    "PositionReferenceIndicator": ("", ""),
    "SegmentationType": ("BINARY", _REFUSE),
    "SegmentsOverlap": ("YES|NO|UNDEFINED", "UNDEFINED"),
    "SpatialLocationsPreserved": ("YES|NO|REORIENTED_ONLY", None),
    "SegmentAlgorithmType": ("AUTOMATIC|SEMIAUTOMATIC|MANUAL", _REFUSE),
    "SegmentLabel": ("|".join(map(re.escape, _SEGMENT_LABELS)), "Segment"),
    "SegmentAlgorithmName": ("deepcac2", _REMOVED),
    "AlgorithmName": ("deepcac2", _REMOVED),
    "AlgorithmVersion": (VERSION, _REMOVED),
    "SoftwareVersions": (VERSION, None),
    "ContentLabel": ("CORONARY_CALCIUM", "SEGMENTATION"),
    "ContentDescription": ("Heart and coronary calcium(, read)?", ""),
    "SeriesDescription": ("(Heart and coronary calcium|Coronary calcium score)(, read)?", None),
    "CompletionFlag": ("PARTIAL|COMPLETE", _REFUSE),
    "VerificationFlag": ("UNVERIFIED", _REFUSE),
    "PreliminaryFlag": ("PRELIMINARY|FINAL", None),
    "ValueType": ("CONTAINER|CODE|NUM|TEXT|IMAGE|COMPOSITE|UIDREF|SCOORD3D|PNAME", _REFUSE),
    "RelationshipType": (
        "CONTAINS|HAS OBS CONTEXT|HAS ACQ CONTEXT|HAS CONCEPT MOD|HAS PROPERTIES|INFERRED FROM|SELECTED FROM",
        _REFUSE,
    ),
    "ContinuityOfContent": ("SEPARATE|CONTINUOUS", _REFUSE),
    "GraphicType": ("POINT|MULTIPOINT|POLYLINE|POLYGON|ELLIPSE|ELLIPSOID", _REFUSE),
    "TemplateIdentifier": (r"\d{1,5}", _REFUSE),
    "MappingResource": ("DCMR", _REFUSE),
    "CodingSchemeDesignator": (_SCHEMES, _REFUSE),
    "CodingSchemeName": ("Codes of deepcac2", None),
}
"""Attributes of words: a regular expression of those that pass, and what stands in place of any other: "",
another word, None to leave the attribute out, or `_REFUSE`."""

_OF_IMAGES = (
    _NUMBERS_OF_IMAGES
    | {"SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"}
    | {"Modality", "PhotometricInterpretation", "RescaleType", "BurnedInAnnotation", "PatientPosition"}
    | {"LossyImageCompression", "LossyImageCompressionMethod", "BodyPartExamined"}
    | {"PresentationLUTShape", "PositionReferenceIndicator"}
)
"""All that is kept of a CT image beside what `Deidentifier._image` adds; no sequence is."""

_ALWAYS = {"DeviceSerialNumber": "0", "ContentDate": _NO_DATE, "ContentTime": _NO_TIME}
"""Type 1 attributes of SEG and SR, whatever they hold (action Z/D and X/Z/D of the table)."""

_NOT_FOUND_HERE = "Not found by deepcac2"
_FROM_A_FILE = f"{_NOT_FOUND_HERE}: taken from a file"

PROFILE = Code("113100", "DCM", "Basic Application Confidentiality Profile")
CLEAN_CONTENT = Code("113104", "DCM", "Clean Structured Content Option")
CLEAN_DESCRIPTORS = Code("113105", "DCM", "Clean Descriptors Option")
"""PS3.16 CID 7050 De-identification Method."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a report may say that is no number, and that is not known in this room.

    Attributes:
        sentences: What is said of a gate, by its code.
        words: Names of rules, of what their parameters may be, and of sets of weights.
        notice: What stands in every report.
    """

    notice: str = ""
    sentences: Mapping[str, str] = field(default_factory=dict)
    words: frozenset[str] = frozenset()


class Deidentifier:
    """Makes what is handed over; the same instance and key give the same bytes.

    Args:
        pseudonyms: New UIDs and PatientIDs.
        vocabulary: What a report may say.
        version: Of this program, for the object.
    """

    def __init__(self, pseudonyms: Pseudonyms, vocabulary: Vocabulary, *, version: str) -> None:
        self.pseudonyms, self._vocabulary, self._version = pseudonyms, vocabulary, version

    def encoded(self, ref: SliceRef) -> bytes:
        """The file that is handed over for an instance.

        Raises:
            NotDeidentified: It is of a kind that cannot be, or holds what cannot be left out nor kept. The
                text repeats nothing of what it holds.
            InputUnreadable: It cannot be read.
        """
        kind = ref.sop_class_uid
        if kind not in KINDS:
            raise NotDeidentified("objects of its kind cannot be de-identified; they stay here")
        with quiet_pydicom(), foreign("its file"):
            upto = Upto.PIXELS if kind == CTImageStorage else Upto.END
            ds = read_slice(ref, upto=upto, limits=limits_of(kind))
            if text(ds, "SOPClassUID") != kind:
                raise NotDeidentified("its header names another SOP class than its file")
            made = self._made(ds, kind)
            written = BytesIO()
            made.save_as(written, enforce_file_format=True)
        return written.getvalue()

    def _made(self, ds: FileDataset, kind: str) -> Dataset:
        made = self._walked(ds, _OF_IMAGES if kind == CTImageStorage else None)
        for keyword in _EMPTY:
            setattr(made, keyword, "")
        made.PatientID = self.pseudonyms.patient(text(ds, "PatientID"))
        methods = [PROFILE]
        if kind == CTImageStorage:
            self._image(ds, made)
        else:
            methods.append(CLEAN_DESCRIPTORS)
            for keyword, value in _ALWAYS.items():
                setattr(made, keyword, value)
            made.Manufacturer = maker_of(text(ds, "Manufacturer")) or _REMOVED
            model = text(ds, "ManufacturerModelName")
            made.ManufacturerModelName = model if model == "deepcac2" else _REMOVED
            made.setdefault("SoftwareVersions", _REMOVED)
        if kind == SegmentationStorage:
            made.ImageType = ["DERIVED", "PRIMARY"]
            _bits(ds, made)
        if kind == Comprehensive3DSRStorage:
            methods.insert(1, CLEAN_CONTENT)
        made.PatientIdentityRemoved = "YES"
        made.DeidentificationMethod = [
            f"deepcac2 {self._version}",
            "PS3.15 E.1 basic profile",
            "attributes by a list of what is kept",
        ]
        made.DeidentificationMethodCodeSequence = [_code(method) for method in methods]
        made.LongitudinalTemporalInformationModified = "REMOVED"
        if not made.get("SOPInstanceUID") or not made.get("StudyInstanceUID"):
            raise NotDeidentified("its header lacks a UID")
        meta = FileMetaDataset()
        meta.FileMetaInformationVersion = b"\0\1"
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = made.SOPClassUID, made.SOPInstanceUID
        meta.TransferSyntaxUID, meta.ImplementationClassUID = (
            ExplicitVRLittleEndian,
            PYDICOM_IMPLEMENTATION_UID,
        )
        made.file_meta, made.preamble = meta, bytes(128)
        return made

    # --- elements -----------------------------------------------------------------------------------------

    def _walked(self, ds: Dataset, only: frozenset[str] | None = None) -> Dataset:
        """What is kept of a data set or an item.

        Args:
            only: Keywords of what may be kept; None: all that is known.
        """
        kept = Dataset()
        for tag in sorted(ds.keys()):
            keyword = keyword_for_tag(tag)
            if not keyword or tag.is_private or (only is not None and keyword not in only):
                continue
            if keyword in _NUMBERS:
                kept.add(_numbers(ds, keyword))
            elif keyword in _UIDS:
                kept.add_new(tag, "UI", [self.pseudonyms.uid(uid) for uid in texts(ds, keyword)])
            elif keyword in _CODES:
                kept.add_new(tag, "SQ", [_known_code(item) for item in ds[tag].value])
            elif keyword in _ITEMS:
                kept.add_new(tag, "SQ", [self._walked(item) for item in ds[tag].value])
            elif keyword == "ContentSequence":
                items = [self._walked(item) for item in ds[tag].value if self._stays(item)]
                if items:
                    kept.add_new(tag, "SQ", items)
            elif keyword in _WORDS and (word := _word(ds, keyword)) is not None:
                kept.add_new(tag, dictionary_VR(tag), word)
            elif keyword == "TextValue":
                kept.add_new(tag, "UT", self._text(ds))
            elif keyword == "ContentCreatorName":
                kept.add_new(tag, "PN", "")
            elif keyword == "PersonName":
                kept.add_new(tag, "PN", _REMOVED)
            elif keyword == "SegmentDescription" and text(ds, keyword).startswith(_NOT_FOUND_HERE):
                kept.add_new(tag, "ST", _FROM_A_FILE)
        return kept

    # --- reports ------------------------------------------------------------------------------------------

    def _stays(self, item: Dataset) -> bool:
        """Whether a content item stays: none does whose kind, or whose text, is not known, or that says how
        old the patient is and of which sex."""
        concept, kind = _concept(item), text(item, "ValueType")
        if concept in _ABOUT_PATIENT:
            return False
        known = re.fullmatch(_WORDS["ValueType"][0], kind) is not None
        return known and (kind != "TEXT" or concept in _TEXTS)

    def _text(self, item: Dataset) -> str:
        """The text of a content item, or what stands in its place."""
        said = text(item, "TextValue")
        rule = _TEXTS.get(_concept(item))
        if isinstance(rule, str):
            return said if re.fullmatch(rule, said) else _REMOVED
        return _REMOVED if rule is None else rule(said, self._vocabulary)

    # --- images -------------------------------------------------------------------------------------------

    def _image(self, ds: FileDataset, made: Dataset) -> None:
        """What is particular to a CT image."""
        kinds = texts(ds, "ImageType")
        if len(kinds) > 1 and (kinds[0] not in ("ORIGINAL", "DERIVED") or kinds[1] != "PRIMARY"):
            raise NotDeidentified("it is no primary image, so its pixels may show the patient's data")
        if kinds:
            made.ImageType = [k if re.fullmatch(_IMAGE_TYPE, k) else "OTHER" for k in kinds]
        made.Manufacturer = maker_of(text(ds, "Manufacturer"))
        if KERNEL.fullmatch(kernel := text(ds, "ConvolutionKernel")):
            made.ConvolutionKernel = kernel.split("\\")
        agent, route = text(ds, "ContrastBolusAgent"), text(ds, "ContrastBolusRoute")
        contrast = contrast_kind(agent, route)
        if contrast != NONE:
            made.ContrastBolusAgent = "CONTRAST"
            made.ContrastBolusRoute = "IV" if contrast == INTRAVENOUS else "ORAL"
        _pixels(ds, made)


def _bits(ds: FileDataset, made: Dataset) -> None:
    """The pixels of a SEG, a bit each (PS3.5 8.1.1), and nothing after them.

    Raises:
        NotDeidentified: They are packed in another way.
    """
    if encoding_of(ds).is_compressed and encoding_of(ds).is_encapsulated:
        raise NotDeidentified("its pixels are compressed; make it again")
    count = int(made.Rows) * int(made.Columns) * int(made.NumberOfFrames)
    data, length = bytearray(ds.PixelData), -(-count // 8)
    if made.BitsAllocated != 1 or len(data) < length:
        raise NotDeidentified("its pixels are not what its header says; make it again")
    del data[length:]
    if count % 8:
        data[-1] &= (1 << count % 8) - 1
    made.add_new("PixelData", "OB", bytes(data) + b"\0" * (length % 2))


def _pixels(ds: FileDataset, made: Dataset) -> None:
    """The pixels of a CT image, decoded and written plainly: its values are the same, and what compressed
    streams and unused bits hold beside them is gone."""
    try:
        cells = clean_cells(ds)
    except InputUnreadable:
        raise
    except Exception as error:  # decoders raise nearly anything
        raise NotDeidentified(f"its pixels cannot be decoded ({type(error).__name__})") from None
    signed, bits = cells.dtype.kind == "i", 8 * cells.dtype.itemsize
    made.BitsAllocated = made.BitsStored = bits
    made.HighBit, made.PixelRepresentation = bits - 1, int(signed)
    padding = padding_range(ds, cells.dtype)
    if ds.get("ModalityLUTSequence") or (padding is not None and bits != 16):
        raise NotDeidentified("its pixels mean something that would have to go")
    if padding is not None:
        for keyword, value in zip(("PixelPaddingValue", "PixelPaddingRangeLimit"), padding, strict=True):
            if keyword in ds:
                made.add_new(Tag(keyword), "SS" if signed else "US", value)
    data = cells.astype(cells.dtype.newbyteorder("<"), copy=False).tobytes()
    made.add_new("PixelData", "OW" if bits > 8 else "OB", data + b"\0" * (len(data) % 2))


# --- values -----------------------------------------------------------------------------------------------

_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_WHOLE = re.compile(r"[+-]?\d{1,12}")


def _numbers(ds: Dataset, keyword: str) -> DataElement:
    """An element that holds numbers and nothing else, as they are written there.

    Raises:
        NotDeidentified: It holds something else.
    """
    tag, vr = Tag(keyword), dictionary_VR(keyword)
    try:
        value = ds[tag].value
        several = isinstance(value, Iterable) and not isinstance(value, (str, bytes))
        values = [] if value is None or value == "" else list(value) if several else [value]
        if vr == "DS":
            numbers: list[Any] = [_decimal(v) for v in values]
        elif vr in ("FD", "FL"):
            numbers = [float(v) for v in values]
        else:
            numbers = [_whole(v) for v in values]
    except MALFORMED:
        raise NotDeidentified(f"{keyword} holds no number") from None
    return DataElement(tag, vr, numbers[0] if len(numbers) == 1 else numbers)


def _decimal(value: Any) -> DSfloat:
    written = str(getattr(value, "original_string", value)).strip()
    if not _DECIMAL.fullmatch(written):
        raise ValueError
    return DSfloat(written) if len(written) <= 16 else decimal(float(written))


def _whole(value: Any) -> int:
    if isinstance(value, int):
        return int(value)
    if not _WHOLE.fullmatch(written := str(value).strip()):
        raise ValueError
    return int(written)


def _word(ds: Dataset, keyword: str) -> str | list[str] | None:
    """The word or words of an attribute, or what stands in their place; None: it is left out."""
    pattern, other = _WORDS[keyword]
    said = texts(ds, keyword)
    words = [word if re.fullmatch(pattern, word) else other for word in said]
    if _REFUSE in words:
        raise NotDeidentified(f"{keyword} holds a word that is not known")
    if None in words:
        return None
    return words[0] if len(words) == 1 else [str(word) for word in words] if words else ""


def maker_of(name: str) -> str:
    """A maker of scanners by its usual name, "" where it is none that we know."""
    return {known.casefold(): known for known in _MAKERS}.get(name.strip().casefold(), "")


@cache
def _meanings() -> Mapping[tuple[str, str], str]:
    """What codes mean, by value and scheme: those of pydicom's tables and ours, which go before."""
    known = {
        (code.value, scheme): code.meaning
        for scheme in ("DCM", "SCT", "UCUM")
        for code in Collection(scheme).concepts.values()
    }
    known["en-US", "RFC5646"] = "English (United States)"
    for module in (structured_report, codes):
        for code in _codes_of(vars(module).values()):
            known[code.value, code.scheme_designator] = code.meaning
    every = (labels.HEART, labels.CALCIUM, *labels.ARTERIES, labels.NOT_SURE, *labels.NOT_CORONARY)
    for concept in chain.from_iterable((x.kind, x.category, x.region) for x in every):
        if concept is not None:
            known[concept.value, concept.scheme] = concept.meaning
    return known


def _codes_of(values: Iterable[Any]) -> Iterator[Code]:
    for value in values:
        if isinstance(value, Code):
            yield value
        elif isinstance(value, tuple) and value and all(isinstance(x, Code) for x in value):
            yield from value


def _known_code(item: Dataset) -> Dataset:
    """A code with the meaning that we know it by.

    Raises:
        NotDeidentified: It is none that we know.
    """
    value, scheme = text(item, "CodeValue"), text(item, "CodingSchemeDesignator")
    meaning = _meanings().get((value, scheme))
    if meaning is None:
        raise NotDeidentified("it holds a code that is not known")
    return _code(Code(value, scheme, meaning))


def _code(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = (
        code.value,
        code.scheme_designator,
        code.meaning[:64],
    )
    return item


# --- texts of a report ------------------------------------------------------------------------------------


def _concept(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence") or []
    return text(names[0], "CodeValue") if names else ""


_ABOUT_PATIENT = frozenset({structured_report.PERCENTILE.value, "121405"})
"""Percentile and population: they say how old the patient is and of which sex."""

_PARAMETER = re.compile(r"[a-z][a-z_0-9 ]{0,40}")
_VALUE = re.compile(r"[\d.,eE\[\] +-]{1,200}|True|False|None")
_WEIGHTS = re.compile(r"([A-Za-z0-9._-]+) sha256 ([0-9a-f]{64})")


def _parameters(said: str, known: Vocabulary) -> str:
    """Algorithm parameters: numbers, words that are known, and the hashes of weights."""
    kept = []
    for part in said.split("; "):
        name, _, value = part.partition(": ")
        if not _PARAMETER.fullmatch(name):
            continue
        if name.endswith(" weights") and (weights := _WEIGHTS.fullmatch(value)):
            of = weights[1] if weights[1] in known.words else "other"
            kept.append(f"{name}: {of} sha256 {weights[2]}")
        elif name == "heart from":
            kept.append("heart from: a file")
        elif _VALUE.fullmatch(value) or value in known.words:
            kept.append(f"{name}: {value}")
    return "; ".join(kept) or _REMOVED


_REMARK = re.compile(r"(?:Warning \(([a-z0-9-]+)\)|Caution: in spite of ([a-z0-9-]+)): .*", re.DOTALL)


def _remark(said: str, known: Vocabulary) -> str:
    """A remark: what its gate says of itself, in place of what it said of this scan."""
    match = _REMARK.fullmatch(said)
    if said == known.notice:
        return said
    if match is not None and (sentence := known.sentences.get(match[1] or match[2])):
        caution = "Caution: in spite of " if match[2] else "Warning "
        code = match[2] or f"({match[1]})"
        return f"{caution}{code}: {sentence}"
    if said.startswith("Caution: "):
        return "Caution: what it says was removed with the patient's data; ask whom this is from."
    return "A remark was removed with the patient's data."


_TEXTS: dict[str, str | Callable[[str, Vocabulary], str]] = {
    "112039": rf"Lesion \d{{1,6}}|{'|'.join(map(re.escape, _SEGMENT_LABELS))}",  # Tracking Identifier
    "121013": "deepcac2",  # Device Observer Name
    "121014": "deepcac2",  # Device Observer Manufacturer
    "121015": f"deepcac2 {VERSION}",  # Device Observer Model Name
    "111001": "deepcac2",  # Algorithm Name
    "111003": VERSION,  # Algorithm Version
    "111002": _parameters,  # Algorithm Parameters
    structured_report.COMMENT.value: _remark,
}
"""What texts of a report may say, by their concept in DCM: a regular expression, or what replaces them."""
