"""Each header gate fires on a series made to break it, and on nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import Dataset

from deepcac2.cli.registry import cell
from deepcac2.cli.registry import gates as listed
from deepcac2.dicom import GATES, Series, check_headers, discover
from deepcac2.dicom.contrast import contrast_kind
from deepcac2.dicom.gates import Gate, is_sharp_kernel, register_gate
from deepcac2.errors import InputError
from deepcac2.pipeline import Case
from deepcac2.pipeline.gates import check_allowed, gates
from deepcac2.pipeline.results import result_row

HU = npt.NDArray[np.int16]
DOCS = Path(__file__).resolve().parents[2] / "docs"


def shift(vector: tuple[float, float, float], when: Callable[[int], bool] = lambda i: True) -> Any:
    """Edit that moves slice i by i times a vector."""

    def edit(i: int, ds: Dataset) -> None:
        if when(i):
            ds.ImagePositionPatient = [
                float(p) + i * v for p, v in zip(ds.ImagePositionPatient, vector, strict=True)
            ]

    return edit


def put(when: Callable[[int], bool] = lambda i: True, **values: Any) -> Any:
    """Edit that sets elements; None deletes."""

    def edit(i: int, ds: Dataset) -> None:
        if not when(i):
            return
        for keyword, value in values.items():
            if value is None:
                delattr(ds, keyword)
            else:
                setattr(ds, keyword, value)

    return edit


def tilted(i: int, ds: Dataset) -> None:
    """Slices rotated by 20° about the row axis, still stacked along z: a tilted gantry."""
    c, s = np.cos(np.radians(20)), np.sin(np.radians(20))
    ds.ImageOrientationPatient = [1, 0, 0, 0, round(c, 8), round(-s, 8)]
    ds.ImagePositionPatient = [-10, -20, i * 3 / round(c, 8)]


def half(i: int) -> bool:
    return i >= 20


def smaller(i: int, ds: Dataset) -> None:
    if half(i):
        ds.Rows = 6
        ds.PixelData = ds.PixelData[: len(ds.PixelData) // 2]


def agents(*meanings: str, **within: str) -> Any:
    """Edit that names contrast agents by code only, each with other codes within its item."""

    def code(meaning: str) -> Dataset:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "1", "99TEST", meaning
        return item

    def edit(i: int, ds: Dataset) -> None:
        ds.ContrastBolusAgentSequence = [code(m) for m in meanings]
        for item in ds.ContrastBolusAgentSequence:
            for keyword, meaning in within.items():
                setattr(item, keyword, [code(meaning)])

    return edit


def route_code(i: int, ds: Dataset) -> None:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "47625008", "SCT", "Intravenous route"
    ds.ContrastBolusAdministrationRouteSequence = [item]


def energy(i: int, ds: Dataset) -> None:
    item = Dataset()
    item.MonoenergeticEnergyEquivalent = 70.0
    ds.MultienergyCTCharacteristicsSequence = [item]


def typed(*more: str) -> Any:
    return put(ImageType=["ORIGINAL", "PRIMARY", "AXIAL", *more])


def taken(first: tuple[str, str | None], second: tuple[str, str | None]) -> Any:
    """Edit that gives the halves of a series dates and times."""

    def edit(i: int, ds: Dataset) -> None:
        ds.AcquisitionDate, time = second if half(i) else first
        if time is not None:
            ds.AcquisitionTime = time

    return edit


TURNED = [0, 1, 0, -1, 0, 0]
MPR = ["DERIVED", "PRIMARY", "MPR"]
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
CASES: dict[str, tuple[Any, dict[str, Any], str | None, set[str]]] = {
    # name: (edit, arguments of `write`, rejection, warnings)
    "good": (None, {}, None, set()),
    "MR": (put(Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4"), {}, "not-ct", set()),
    "PET in a CT series": (put(SOPClassUID="1.2.840.10008.5.1.4.1.1.128"), {}, "not-ct", set()),
    "localizer": (put(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), {}, "localizer", set()),
    "MPR": (put(ImageType=MPR), {}, "derived", set()),
    "MIP": (put(ImageType=["DERIVED", "SECONDARY", "AXIAL", "MIP"]), {}, "derived", set()),
    "screen save": (put(ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"]), {}, "derived", set()),
    "secondary capture": (put(SOPClassUID=CAPTURE), {}, "derived", set()),
    "derived but axial": (put(ImageType=["DERIVED", "PRIMARY", "AXIAL"]), {}, None, {"derived"}),
    "reconstructed again": (put(ImageType=["ORIGINAL", "SECONDARY", "AXIAL"]), {}, None, set()),
    "coronal": (None, {"orientation": (1, 0, 0, 0, 0, -1)}, "not-axial", set()),
    "sagittal": (None, {"orientation": (0, 1, 0, 0, 0, -1)}, "not-axial", set()),
    "rows front to back": (None, {"orientation": (0, 1, 0, -1, 0, 0)}, "not-axial", set()),
    "prone, feet first": (None, {"orientation": (-1, 0, 0, 0, -1, 0)}, None, set()),
    "10 degrees oblique": (None, {"orientation": (1, 0, 0, 0, 0.98480775, 0.17364818)}, None, set()),
    "no position": (put(lambda i: i == 7, ImagePositionPatient=None), {}, "no-geometry", set()),
    "no orientation": (put(lambda i: i == 0, ImageOrientationPatient=None), {}, "no-geometry", set()),
    "zero cosines": (put(ImageOrientationPatient=[0, 0, 0, 0, 0, 0]), {}, "no-geometry", set()),
    "skew cosines": (put(ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0]), {}, "no-geometry", set()),
    "zero spacing": (put(PixelSpacing=[0, 0]), {}, "no-geometry", set()),
    "two sizes": (smaller, {}, "mixed-size", set()),
    "two spacings": (put(half, PixelSpacing=[0.9, 0.7]), {}, "mixed-spacing", set()),
    "half a pixel over 512": (put(half, PixelSpacing=[0.8, 0.701]), {}, "mixed-spacing", set()),
    "a third of a pixel": (put(half, PixelSpacing=[0.8, 0.7005]), {}, None, set()),
    "two orientations": (put(half, ImageOrientationPatient=TURNED), {}, "mixed-orientation", set()),
    "rounded orientation": (put(half, ImageOrientationPatient=[1, 0.001, 0, -0.001, 1, 0]), {}, None, set()),
    "tilted gantry": (tilted, {}, "gantry-tilt", set()),
    "sheared": (shift((0, 0.3, 0)), {}, "gantry-tilt", set()),
    "tilt in the header only": (put(GantryDetectorTilt=18.5), {}, None, {"gantry-tilt"}),
    "tilt the other way": (put(GantryDetectorTilt=-18.5), {}, None, {"gantry-tilt"}),
    "one slice moved": (shift((0.5, 0, 0), lambda i: i == 9), {}, "mixed-position", set()),
    "8 mm": (None, {"increment": 8.0, "thickness": 8.0}, "too-thick", set()),
    "8 mm apart": (None, {"increment": 8.0, "thickness": 5.0}, "too-thick", set()),
    "5 mm": (None, {"increment": 5.0, "thickness": 5.0}, None, {"thick-slices"}),
    "3 mm": (None, {"increment": 3.0, "thickness": 3.0}, None, set()),
    "1 mm": (None, {"increment": 3.0, "thickness": 1.0}, None, set()),
    "0.96 mm": (None, {"increment": 3.0, "thickness": 0.96}, None, set()),
    "0.94 mm": (None, {"increment": 3.0, "thickness": 0.94}, "too-thin", set()),
    "0.75 mm": (None, {"increment": 3.0, "thickness": 0.75}, "too-thin", set()),
    "no thickness": (put(SliceThickness=None), {"increment": 6.0}, "too-thick", set()),
    "1.2 mm pixels": (put(PixelSpacing=[1.2, 1.2]), {}, None, set()),
    "1.21 mm rows": (put(PixelSpacing=[1.21, 1.0]), {}, "coarse-pixels", set()),
    "1.21 mm columns": (put(PixelSpacing=[1.0, 1.21]), {}, "coarse-pixels", set()),
    "agent": (put(ContrastBolusAgent="ISOVUE300/100"), {}, "contrast", set()),
    "agent in one image": (put(lambda i: i == 3, ContrastBolusAgent="OMNI"), {}, "contrast", set()),
    "agent NONE": (put(ContrastBolusAgent="NONE"), {}, None, set()),
    "agent w/o": (put(ContrastBolusAgent="w/o contrast"), {}, None, set()),
    "oral agent": (put(ContrastBolusAgent="Gastro", ContrastBolusRoute="ORAL"), {}, None, {"contrast"}),
    "oral and IV": (put(ContrastBolusAgent="ORAL & IV"), {}, "contrast", set()),
    "IV and oral": (put(ContrastBolusAgent="IV & ORAL"), {}, "contrast", set()),
    "two routes": (put(ContrastBolusAgent="OMNI", ContrastBolusRoute=["ORAL", "IV"]), {}, "contrast", set()),
    "agent by code": (agents("Iohexol"), {}, "contrast", set()),
    "oral agent by code": (
        agents("Iohexol", ContrastBolusAdministrationRouteSequence="Oral route"), {}, None, {"contrast"}
    ),
    "ingredient": (put(ContrastBolusIngredient="IODINE"), {}, "contrast", set()),
    "route": (put(ContrastBolusRoute="IV"), {}, "contrast", set()),
    "route by code": (route_code, {}, "contrast", set()),
    "volume": (put(ContrastBolusVolume=80), {}, "contrast", set()),
    "no volume": (put(ContrastBolusVolume=0), {}, None, set()),
    "dose": (put(ContrastBolusTotalDose=30), {}, "contrast", set()),
    "neither oral nor IV": (put(ContrastBolusAgent="NO ORAL OR IV CONTRAST"), {}, None, set()),
    "oral, then IV": (
        lambda i, ds: put(ContrastBolusAgent="OMNI", ContrastBolusRoute="IV" if half(i) else "ORAL")(i, ds),
        {}, "contrast", set(),
    ),
    "none, then an agent": (
        lambda i, ds: put(ContrastBolusAgent="OMNIPAQUE 350" if half(i) else "NONE")(i, ds),
        {}, "contrast", set(),
    ),
    "two voltages": (put(half, KVP=80), {}, None, {"kvp"}),
    "two kernels": (put(half, ConvolutionKernel="SOFT"), {}, None, {"mixed-kernel"}),
    "soft and lung": (put(half, ConvolutionKernel="LUNG"), {}, None, {"mixed-kernel", "sharp-kernel"}),
    "with loss": (put(LossyImageCompression="01"), {}, None, {"lossy"}),
    "one with loss": (put(lambda i: i == 3, LossyImageCompression="01"), {}, None, {"lossy"}),
    "without loss": (put(LossyImageCompression="00"), {}, None, set()),
    "two frames": (put(half, FrameOfReferenceUID="1.2.3"), {}, "mixed-frame", set()),
    "two positions": (
        lambda i, ds: put(PatientPosition="HFP" if half(i) else "HFS")(i, ds), {}, "mixed-scan", set()
    ),
    "two days": (taken(("20240101", None), ("20240102", None)), {}, "mixed-scan", set()),
    "two days, with times": (
        taken(("20240101", "120000"), ("20240102", "120000")), {}, "mixed-scan", set()
    ),
    "60 minutes, over midnight": (
        taken(("20240101", "233000"), ("20240102", "003000.5")), {}, None, {"mixed-scan"}
    ),
    "61 minutes, over midnight": (
        taken(("20240101", "233000"), ("20240102", "003100")), {}, "mixed-scan", set()
    ),
    "one day": (taken(("20240101", "100000"), ("20240101", "120000")), {}, None, set()),
    "virtual non-contrast": (typed("VNC"), {}, "spectral", set()),
    "40 keV": (typed("CT_SOM8 SPI", "MONO_40KEV"), {}, "spectral", set()),
    "mono-energetic": (typed("VMI"), {}, "spectral", set()),
    "40 keV in one slice": (put(lambda i: i == 3, ImageType=["DERIVED", "PRIMARY", "AXIAL", "MONO_40KEV"]),
                            {}, "spectral", set()),
    "material removed": (typed("MAT_REMOVED"), {}, "spectral", set()),
    "electron density": (typed("ELECTRON_DENSITY"), {}, "spectral", set()),
    "two energies, ordinary image": (typed("CT_SOM5 SPI DUAL"), {}, None, set()),
    "monitoring": (typed("CT_SOM5 MON"), {}, None, set()),
    "HU modified": (put(RescaleType="HU_MOD"), {}, "spectral", set()),
    "HU": (put(RescaleType="HU"), {}, None, set()),
    "an energy": (energy, {}, "spectral", set()),
    "described": (put(SeriesDescription="Chest Mono+ 70 keV Br40"), {}, "spectral", set()),
    "described otherwise": (put(SeriesDescription="Chest without, monitoring, 120 kV"), {}, None, set()),
    "140 kV": (put(KVP=140), {}, None, {"kvp"}),
    "121 kV": (put(KVP=121), {}, None, {"kvp"}),
    "120.5 kV": (put(KVP=120.5), {}, None, set()),
    "unknown kV": (put(KVP=None), {}, None, {"kvp"}),
    "lung kernel": (put(ConvolutionKernel="LUNG"), {}, None, {"sharp-kernel"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_series_gets_its_finding(name: str, ct, hu: HU, tmp_path: Path) -> None:
    edit, arguments, rejection, warnings = CASES[name]
    ct.write(tmp_path, hu, edit=edit, **arguments)
    (series,) = discover(tmp_path).series
    assert (series.rejection.code if series.rejection else None) == rejection
    if rejection is None:
        assert {f.code for f in series.warnings} == warnings


def test_facts_that_differ_have_no_single_value(ct, hu: HU, tmp_path: Path) -> None:
    ct.write(tmp_path, hu, edit=put(half, KVP=80, ConvolutionKernel="LUNG"))
    (series,) = discover(tmp_path).series
    assert (series.kvp, series.kernel) == (None, "")
    assert (series.kvps, series.kernels) == ((80.0, 120.0), ("LUNG", "STANDARD"))
    row = result_row(Case(series=series))
    assert (row.kvp, row.kernel) == (None, "")
    messages = [f.message for f in series.findings]
    assert any("80 and 120 kV" in m for m in messages)
    assert any("LUNG, STANDARD" in m for m in messages)


@pytest.mark.parametrize(
    ("agent", "kind"),
    [
        ("OMNIPAQUE 350", "intravenous"), ("Oral/IV", "intravenous"), ("IV/ORAL", "intravenous"),
        ("I.V.", "intravenous"), ("100 ml iv300", "intravenous"), ("ISOVUE 370 & ORAL", "intravenous"),
        ("ISOVUE/ORAL", "intravenous"), ("W/O & W", "intravenous"), ("WITHOUT AND WITH IV", "intravenous"),
        ("NO ORAL, IV", "intravenous"), ("NO ORAL", "intravenous"), ("NO ORAL OMNI 350", "intravenous"),
        ("ORAL WITHOUT IV", "intravenous"), ("CORAL", "intravenous"), ("NONIONIC", "intravenous"),
        ("W/", "intravenous"), ("SIN/CON CONTRASTE", "intravenous"),
        ("1", "intravenous"), ("intravenös", "intravenous"),
        ("ORAL", "oral"), ("Gastrografin oral", "oral"), ("NO IV, ORAL ONLY", "oral"), ("p.o.", "oral"),
        ("", ""), ("NONE", ""), ("NONE GIVEN", ""), ("NONE.", ""), ("NO IV", ""), ("NON-CON", ""),
        ("NO ORAL/IV CONTRAST", ""), ("NO ORAL OR IV CONTRAST", ""), ("No I.V. contrast given", ""),
        ("W/O CONTRAST", ""), ("w/o", ""), ("--", ""), ("0", ""), ("0.0 ml", ""), ("not given", ""),
        ("no_contrast", ""), ("N/A", ""), ("ohne KM", ""), ("NON CONTRAST", ""), ("noncontrast", ""),
        ("unenhanced", ""), ("Native", ""),
    ],
)  # fmt: skip
def test_words_about_contrast_agent(agent: str, kind: str) -> None:
    assert contrast_kind(agent) == kind


@pytest.mark.parametrize(
    ("agent", "route", "volume", "kind"),
    [
        ("OMNI", "ORAL", 100.0, "oral"), ("OMNI", "ORAL\\IV", None, "intravenous"), ("NONE", "NONE", 0.0, ""),
        ("NONE", "IV", None, "intravenous"), ("NONE", "", 80.0, "intravenous"),
        ("NONE", "ORAL", None, "oral"), ("ORAL & IV", "ORAL", None, "intravenous"),
        ("OMNI", "NONE", None, "intravenous"), ("OMNI", "ORAL\\RECTAL", None, "intravenous"),
    ],
)  # fmt: skip
def test_contrast_agent_route_and_volume(agent: str, route: str, volume: float | None, kind: str) -> None:
    assert contrast_kind(agent, route, volume) == kind


def positions(tmp_path: Path, ct: Any, z: npt.ArrayLike, **arguments: Any) -> Series:
    """A series with slices at the given z."""
    heights = np.asarray(z, dtype=float)

    def edit(i: int, ds: Dataset) -> None:
        ds.ImagePositionPatient = [0, 0, float(heights[i])]

    shape = (len(heights), 4, 4)
    ct.write(tmp_path, np.arange(len(heights) * 16).reshape(shape).astype(np.int16), edit=edit, **arguments)
    (series,) = discover(tmp_path).series
    return series


def code_of(series: Series) -> str | None:
    return series.rejection.code if series.rejection else None


def test_gaps(ct, tmp_path: Path) -> None:
    even = np.arange(60) * 2.0
    gone = np.delete(even, [20, 21, 40])
    jitter, little = (even + np.where(np.arange(60) == 30, mm, 0) for mm in (0.25, 0.15))
    rounded = (np.arange(200) * 0.625).round(1)
    stretched = np.cumsum(np.r_[np.full(30, 2.0), np.full(30, 2.15)])
    switched = np.r_[np.arange(40) * 2.0, 80 + np.arange(20) * 3.0]
    expected = {
        "even": (even, None), "gone": (gone, "missing-slices"), "jitter": (jitter, "uneven-increments"),
        "a little jitter": (little, None),
        "rounded": (rounded, None), "stretched": (stretched, "uneven-increments"),
        "switched": (switched, "uneven-increments"), "downwards": (-even, None),
    }  # fmt: skip
    for name, (z, code) in expected.items():
        series = positions(tmp_path / name, type(ct)(), z, thickness=2.0)
        assert code_of(series) == code, name
    series = positions(tmp_path / "again", type(ct)(), gone)
    assert series.increment == pytest.approx(2.0)
    assert "missing: 3 " in series.findings[0].message


def test_the_increment_of_rounded_positions_is_exact(ct, tmp_path: Path) -> None:
    series = positions(tmp_path, ct, (np.arange(201) * 0.625).round(1))
    assert series.increment == pytest.approx(0.625, abs=1e-9)


def test_too_few_slices_by_number_and_by_length(ct, tmp_path: Path) -> None:
    assert code_of(positions(tmp_path / "a", type(ct)(), np.arange(19) * 5.0)) == "too-few-slices"
    assert code_of(positions(tmp_path / "b", type(ct)(), np.arange(20) * 5.0)) is None
    assert code_of(positions(tmp_path / "c", type(ct)(), np.arange(60) * 1.0)) == "too-few-slices"
    assert code_of(positions(tmp_path / "d", type(ct)(), [5.0])) == "too-few-slices"


def renamed(uids: list[str | None]) -> Any:
    """Edit that gives slice i its SOPInstanceUID; None removes it."""

    def edit(i: int, ds: Dataset) -> None:
        if uids[i] is None:
            del ds.SOPInstanceUID
        else:
            ds.SOPInstanceUID = uids[i]

    return edit


OWN = [f"1.2.{i + 1}" for i in range(28)]


@pytest.mark.parametrize(
    ("uids", "count"),
    [
        (OWN, 0),
        (["1.2.3"] * 28, 28),
        ([None] * 28, 28),
        ([*OWN[:27], None], 1),
        ([None, *OWN[1:]], 1),
        ([*OWN[:27], OWN[26]], 2),
        ([OWN[27], *OWN[1:]], 2),
        (OWN[:14] * 2, 28),
    ],
)
def test_images_need_a_uid_of_their_own(
    uids: list[str | None], count: int, ct, hu: HU, tmp_path: Path
) -> None:
    ct.write(tmp_path, hu, edit=renamed(uids))
    (series,) = discover(tmp_path).series
    assert code_of(series) == ("instance-uid" if count else None)
    assert not count or series.findings[0].message.startswith(f"{count} of 28 images")
    with pytest.raises(InputError):
        check_allowed(["instance-uid"])


def test_copies_and_frames_may_share_a_uid(ct, hu: HU, tmp_path: Path) -> None:
    for path in ct.write(tmp_path / "files", hu)[3:5]:
        (path.parent / f"again{path.name}").write_bytes(path.read_bytes())
    (tmp_path / "frames").mkdir()
    ct.write_enhanced(tmp_path / "frames" / "a", hu)
    (tmp_path / "frames" / "b").write_bytes((tmp_path / "frames" / "a").read_bytes())
    for name in ("files", "frames"):
        (series,) = discover(tmp_path / name).series
        assert series.rejection is None
        assert "duplicate-slices" in {f.code for f in series.warnings}


def test_two_multiframe_files_may_not_share_a_uid(ct, hu: HU, tmp_path: Path) -> None:
    ct.write_enhanced(tmp_path / "a", hu)
    ds = pydicom.dcmread(tmp_path / "a")
    for item in ds.PerFrameFunctionalGroupsSequence:
        item.PlanePositionSequence[0].ImagePositionPatient[2] += 84
    ds.save_as(tmp_path / "b")
    (series,) = discover(tmp_path).series
    assert code_of(series) == "instance-uid"


def test_slices_at_one_position_warn_until_pixels_are_read(ct, tmp_path: Path) -> None:
    series = positions(tmp_path, ct, np.r_[np.arange(40) * 3.0, 6.0])
    assert series.rejection is None
    assert [f.code for f in series.warnings] == ["duplicate-slices"]
    assert series.increment == pytest.approx(3.0)


def test_allow_turns_a_rejection_into_a_warning(ct, hu: HU, tmp_path: Path) -> None:
    ct.write(tmp_path, hu, increment=8.0, thickness=8.0)
    (series,) = discover(tmp_path).series
    assert series.rejection is not None
    assert series.rejection.message.endswith("(go on with --allow too-thick)")
    (allowed,) = discover(tmp_path, allow=["too-thick"]).series
    assert allowed.rejection is None
    assert [(f.code, f.allowed) for f in allowed.warnings] == [("too-thick", True)]
    assert not any(f.allowed for f in series.findings)
    assert "--allow" not in allowed.warnings[0].message
    assert check_headers(series, allow=["too-thick"]) == allowed.findings


def test_fatal_findings_come_first(ct, hu: HU, tmp_path: Path) -> None:
    ct.write(tmp_path, hu, increment=8.0, edit=put(KVP=100, ContrastBolusAgent="X"))
    (series,) = discover(tmp_path).series
    found = [(f.code, f.fatal) for f in series.findings]
    assert found == [("too-thick", True), ("contrast", True), ("kvp", False)]


def test_enhanced_multiframe_is_read_or_rejected(ct, hu: HU, tmp_path: Path) -> None:
    ct.write_enhanced(tmp_path / "a", hu)
    (series,) = discover(tmp_path).series
    assert series.rejection is None
    assert [s.frame for s in series.slices] == list(range(len(hu)))[::-1]
    assert (series.kvp, series.kernel, series.increment) == (100.0, "B60f", 3.0)
    assert [f.code for f in series.warnings] == ["kvp", "sharp-kernel"]
    ct.write_enhanced(tmp_path / "a", hu, broken=True)
    (series,) = discover(tmp_path).series
    assert code_of(series) == "enhanced-multiframe"


def test_sharp_kernels() -> None:
    # kernels of the NLST protocols: those for lung and those for soft tissue, of four makers
    for kernel in ("B50f", "B60f", "B80f", "LUNG", "BONE", "D", "FC50", "FC51", "FC53", "FC30", "Br64d\\3"):
        assert is_sharp_kernel(kernel), kernel
    for kernel in (
        "B20f",
        "B30f",
        "B40f",
        "STANDARD",
        "SOFT",
        "C",
        "B",
        "FC10",
        "FC02",
        "Qr40",
        "Br40d\\5",
        "",
    ):
        assert not is_sharp_kernel(kernel), kernel


def test_registry() -> None:
    for code, gate in gates().items():
        assert code == gate.code
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", code)
        assert gate.sentence[0].isupper()
        assert gate.sentence.endswith(".")
        assert gate.fatal or not gate.overridable
    assert {"contrast-measured", "heart-not-found", "heart-cut-off", "heart-implausible"} <= set(gates())
    with pytest.raises(KeyError):
        GATES["no-such-gate"].finding("x")
    with pytest.raises(ValueError, match="there are two gates not-ct"):
        register_gate(Gate(code="not-ct", sentence="Another one."))
    for wrong in ("undecodable", "no-such-gate", "heart-not-found"):
        with pytest.raises(InputError, match=wrong):
            check_allowed(["metal", wrong])


def test_docs_hold_the_table() -> None:
    rows = [[f"`{gate['code']}`", *map(cell, list(gate.values())[1:])] for gate in listed()]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    assert table in (DOCS / "gates.md").read_text(encoding="utf-8")
