"""OHIF in a real browser over our DICOMweb service, and what gets its files."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response
from PIL import Image
from pydicom.dataset import Dataset

from deepcac2.dashboard import fetch, viewer
from deepcac2.delivery.push import push
from deepcac2.delivery.sending import Credentials, DicomWeb, tls_context
from deepcac2.dicom import MeasuredCalcium, discover, read_series, write_structured_report
from deepcac2.dicom.seg.codes import part_label
from deepcac2.errors import InputError
from deepcac2.imaging.labels import ARTERIES, NOT_CORONARY, NOT_SURE

CHROMIUM = Path("/usr/bin/chromium")
SOFTWARE_GL = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
"""WebGL without a graphics card, and a browser that runs as root in a container."""

NEWEST = """() => {
  const service = window.services && window.services.cornerstoneViewportService;
  const ids = service ? [...service.viewportsById.keys()] : [];
  return ids.length ? service.getCornerstoneViewport(ids[ids.length - 1]) : null;
}"""
"""The viewport that is shown, as OHIF knows it."""


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip("needs Chromium at /usr/bin/chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=SOFTWARE_GL)
        yield browser.new_page(viewport={"width": 1280, "height": 800})
        browser.close()


@pytest.fixture(scope="module")
def with_viewer(viewer_case: Any, serve: Callable[[FastAPI], str], viewer_app: Callable[..., FastAPI]) -> str:
    if not (fetch.VENDOR / "ohif" / "index.html").is_file():
        pytest.skip("needs the viewer's files: make viewer")
    return serve(viewer_app(viewer_case, vendor=fetch.VENDOR))


def picture(page: Any) -> npt.NDArray[np.int16]:
    content = page.locator("canvas.cornerstone-canvas").first.screenshot()
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(np.int16)


def on_canvas(page: Any, points: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Where LPS points (n, 3), mm, are shown: (row, column) of the picture."""
    script = (
        f"(points) => {{ const v = ({NEWEST})(); return points.map((p) => Array.from(v.worldToCanvas(p))); }}"
    )
    found = np.asarray(page.evaluate(script, points.tolist()))
    return np.floor(found[:, ::-1]).astype(np.int64)


@pytest.fixture
def complaints(page: Any) -> list[str]:
    """What the browser complains about during the test."""
    page.goto("about:blank")  # ends what the page before was still loading
    found: list[str] = []
    page.on("requestfailed", lambda request: found.append(f"{request.url}: {request.failure}"))
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on(
        "console",
        lambda line: found.append(f"{line.text} {line.location['url']}") if line.type == "error" else None,
    )
    return found


def open_case(page: Any, address: str, case: Any, *others: str, z: int | None = None) -> int:
    """Open a case, and wait until the segmentation is on and the slice with the most calcium in front.

    Args:
        others: SeriesInstanceUIDs to open beside CT and SEG.
        z: Open this slice instead.

    Returns:
        The index of that slice.
    """
    slice_asked = "" if z is None else f"&slice={list(case.files)[z]}"
    z = int(case.masks["calcium"].sum(axis=(1, 2)).argmax()) if z is None else z
    series = ",".join((case.series, case.seg, *others))
    page.goto(
        f"{address}/viewer?StudyInstanceUIDs={case.study}&SeriesInstanceUIDs={series}"
        f"&initialSeriesInstanceUID={case.seg}{slice_asked}"
    )
    page.wait_for_function(
        f"""(uid) => {{
          const viewport = ({NEWEST})();
          const id = viewport && viewport.getCurrentImageId && viewport.getCurrentImageId();
          if (!id || !id.includes(uid)) return false;
          return window.services.segmentationService.getSegmentationRepresentations(viewport.id).length > 0;
        }}""",
        arg=list(case.files)[z],
        timeout=90_000,
    )
    return z


def test_a_case_opens_with_its_segmentation(
    page: Any, complaints: list[str], with_viewer: str, viewer_case: Any
) -> None:
    """Heart and calcium are drawn where the masks are; nothing comes from elsewhere, nothing complains."""
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    calcium, heart = viewer_case.masks["calcium"], viewer_case.masks["heart"]
    z = open_case(page, with_viewer, viewer_case)
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(500)
    with_segmentation = picture(page)
    page.evaluate(
        f"() => window.services.segmentationService.clearSegmentationRepresentations(({NEWEST})().id)"
    )
    page.wait_for_timeout(500)
    without = picture(page)

    (series,) = (s for s in discover(viewer_case.ct).series if s.series_uid == viewer_case.series)
    geometry = read_series(series).volume.geometry
    differs = np.abs(with_segmentation - without).max(axis=-1) > 30
    differs[:, -40:] = False  # the scroll bar: it shows which slices have been loaded

    def places(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        index = np.argwhere(mask)
        points = geometry.to_lps(np.column_stack([np.full(len(index), z), index]).astype(float))
        found = on_canvas(page, points)
        return found[:, 0], found[:, 1]

    yellow = with_segmentation[places(calcium[z])]
    assert (yellow[:, 0] - yellow[:, 2]).mean() > 60  # towards (255, 221, 64)
    assert differs[places(calcium[z])].mean() > 0.9
    inside = heart[z].copy()
    for axis in (0, 1):
        for step in (1, -1, 2, -2):
            inside &= np.roll(heart[z], step, axis)
    rim = heart[z] & ~inside
    assert differs[places(rim)].mean() > 0.4  # a line on its edge
    rows, columns = places(heart[z])
    around = np.zeros_like(differs)
    around[rows.min() - 8 : rows.max() + 9, columns.min() - 8 : columns.max() + 9] = True
    assert not differs[~around].any()
    assert differs.sum() > 500

    assert not complaints
    assert [url for url in requests if not url.startswith((f"{with_viewer}/", f"blob:{with_viewer}/"))] == []
    assert any(url.endswith("/frames/1") for url in requests)
    assert page.locator("text=Coronary calcium").count() > 0
    assert page.locator("[data-cy=back-to-dashboard]").get_attribute("href") == "/"


VISIBLE = """() => {
  const service = window.services.segmentationService;
  const [viewport] = [...window.services.cornerstoneViewportService.viewportsById.keys()].slice(-1);
  const [{ segments: shown }] = service.getSegmentationRepresentations(viewport);
  const [{ segments }] = service.getSegmentations();
  return Object.fromEntries(Object.keys(shown).map((nr) => [segments[nr].label, shown[nr].visible]));
}"""
"""By label, whether a segment is shown."""


def click_eye(page: Any, label: str) -> None:
    row = page.locator("[data-cy=data-row]").filter(has=page.get_by_text(label, exact=True))
    row.hover()
    row.locator("[data-cy=data-row-visibility-toggle]").click()
    page.wait_for_timeout(500)


def said_by(item: Dataset) -> list[str]:
    """The lines of a report that should be shown: the name of a text, code or number, and what it says."""
    name = item.ConceptNameCodeSequence[0].CodeMeaning
    lines = []
    if item.ValueType == "NUM":
        (measured,) = item.MeasuredValueSequence
        units = {"1": "", "[hnsf'U]": "HU", "mm3": "mm³", "cm3": "cm³", "%": "%"}
        unit = units[measured.MeasurementUnitsCodeSequence[0].CodeValue]
        lines = [f"{name}: {float(measured.NumericValue):.10g} {unit}".strip()]
    elif item.ValueType in ("TEXT", "CODE"):
        text = item.get("TextValue") or item.ConceptCodeSequence[0].CodeMeaning
        lines = [f"{name}: {text}"]
    return lines + [line for inner in item.get("ContentSequence", []) for line in said_by(inner)]


@pytest.mark.slow
def test_segments_by_class_and_the_report(
    page: Any,
    complaints: list[str],
    viewer_case: Any,
    named_case: Any,
    serve: Callable[[FastAPI], str],
    viewer_app: Callable[..., FastAPI],
) -> None:
    """Each class is listed, drawn in its colour, and hidden by its eye; the report is read as text."""
    if not (fetch.VENDOR / "ohif" / "index.html").is_file():
        pytest.skip("needs the viewer's files: make viewer")
    seg, sr = pydicom.dcmread(named_case.seg_file), pydicom.dcmread(named_case.sr_file)
    case = replace(viewer_case, results=named_case.results, seg=str(seg.SeriesInstanceUID))
    colours = {part_label(label): label.colour for label in (*ARTERIES, NOT_SURE, *NOT_CORONARY)}
    stacks = {part_label(c): named_case.arteries == c.value for c in (*ARTERIES, NOT_SURE)}
    stacks |= {part_label(c): named_case.others == c.value for c in NOT_CORONARY}
    names = [str(item.SegmentLabel) for item in seg.SegmentSequence]
    assert set(names[2:]) == {name for name, mask in stacks.items() if mask.any()}
    (series,) = (s for s in discover(case.ct).series if s.series_uid == case.series)
    geometry = read_series(series).volume.geometry

    address = serve(viewer_app(case, vendor=fetch.VENDOR))
    for name in ("Calcium, LAD", "Calcium, RCA", "Not counted, aorta"):
        mask = stacks[name]
        z = open_case(page, address, case, str(sr.SeriesInstanceUID), z=int(mask.sum(axis=(1, 2)).argmax()))
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(500)
        shown = picture(page)
        click_eye(page, name)
        hidden = picture(page)
        index = np.argwhere(mask[z])
        points = geometry.to_lps(np.column_stack([np.full(len(index), z), index]).astype(float))
        places = tuple(on_canvas(page, points).T)
        line = np.asarray(colours[name])
        filled = 0.25 * hidden[places] + 0.75 * line
        off = np.minimum(*(np.abs(shown[places] - expected).max(axis=1) for expected in (line, filled)))
        assert np.median(off) < 15, name
        others = {s for s in names if s not in (name, "Coronary calcium")}
        assert {s for s, seen in page.evaluate(VISIBLE).items() if seen} == others
    click_eye(page, "Coronary calcium")  # hidden at first: it lies on the colours of the arteries
    assert page.evaluate(VISIBLE)["Coronary calcium"]
    assert page.locator("[data-cy=data-row-title]").all_inner_texts() == names

    style = """() => {
      const service = window.services.segmentationService;
      const [{ segmentationId, segments }] = service.getSegmentations();
      return Object.keys(segments).map(Number).map((segmentIndex) =>
        service.getStyle({ segmentationId, type: 'Labelmap', segmentIndex }).fillAlpha);
    }"""
    alphas = [0, 0] + [0.75] * (len(names) - 2)
    assert page.evaluate(style) == alphas
    page.get_by_text("Heart", exact=True).click()  # it flashes, and is an outline again
    page.wait_for_function(f"() => ({style})()[0] !== 0")
    page.wait_for_function(f"() => ({style})()[0] === 0")
    assert page.evaluate(style) == alphas

    page.get_by_text(str(sr.SeriesDescription), exact=True).dblclick()
    page.wait_for_selector("text=Imaging Measurement Report")
    text = page.locator("[data-cy=viewport-grid]").inner_text()
    lines = [line for line in text.splitlines() if line]
    wanted = said_by(sr)
    assert sum("score: " in line for line in wanted) > 3
    assert any(line.startswith("Percentile Ranking") for line in wanted)
    rest = iter(lines)
    assert [line for line in wanted if line not in rest] == []  # all of them, and in their order
    assert "Measurement Group: Calcium, LAD" in text
    assert "not supported" not in text
    assert not complaints


@pytest.mark.slow
def test_the_viewer_opens_the_slice_that_the_dashboard_names(
    page: Any, with_viewer: str, viewer_case: Any
) -> None:
    """Where most scores, which need not be where most is; and any other."""
    with urllib.request.urlopen(f"{with_viewer}/api/cases/{viewer_case.series}/slices", timeout=60) as answer:
        said = json.load(answer)
    assert said["instance"] == list(viewer_case.files)[said["first"]]
    for z in (said["first"], next(z for z in said["counted"] if z != said["first"])):
        assert open_case(page, with_viewer, viewer_case, z=z) == z


@pytest.mark.slow
def test_a_case_opens_from_a_pacs(
    page: Any,
    complaints: list[str],
    viewer_case: Any,
    serve: Callable[[FastAPI], str],
    orthanc: Any,
    orthanc_module: ModuleType,
    tmp_path: Path,
) -> None:
    """CT, SEG and SR are pushed to a real Orthanc, and the same viewer opens them from there."""
    if not (fetch.VENDOR / "ohif" / "index.html").is_file():
        pytest.skip("needs the viewer's files: make viewer")
    results = tmp_path / "results"
    shutil.copytree(viewer_case.results, results)
    (found,) = (s for s in discover(viewer_case.ct).series if s.series_uid == viewer_case.series)
    (seg,) = results.rglob("cac.seg.dcm")
    volume = read_series(found).volume
    measured = MeasuredCalcium(
        score=100.0,
        volume_mm3=80.0,
        risk_group=1,
        heart_ml=600.0,
        heart_centre=tuple(volume.geometry.to_lps([(n - 1) / 2 for n in volume.hu.shape])),
    )
    report = seg.with_name("cac.sr.dcm")
    write_structured_report(report, series=found, segmentation=seg, measured=measured, algorithm_version="0")
    details = seg.with_name("details.json")
    content = json.loads(details.read_text()) | {"outputs": [seg.name, report.name]}
    details.write_text(json.dumps(content))

    user = {"USER": orthanc_module.USER, "PASSWORD": orthanc_module.PASSWORD}
    signed_in = Credentials.of({f"DEEPCAC2_DICOMWEB_{k}": v for k, v in user.items()})
    service = DicomWeb(orthanc.dicomweb, credentials=signed_in, tls=tls_context({}))
    with contextlib.closing(service) as destination:
        summary = push(results, destination, ct=viewer_case.ct)
    assert summary.sent == len(viewer_case.files) + 2
    stored = [pydicom.dcmread(io.BytesIO(data)) for data in orthanc.stored().values()]
    assert Counter(ds.Modality for ds in stored) == {"CT": len(viewer_case.files), "SEG": 1, "SR": 1}
    (sr,) = (ds for ds in stored if ds.Modality == "SR")

    app = FastAPI()

    def pacs(path: str, request: Request) -> Response:
        """Orthanc's DICOMweb on the viewer's origin, as a reverse proxy in a hospital has it."""
        accept = {"Accept": request.headers.get("accept", "*/*")}
        query = f"?{request.url.query}" if request.url.query else ""
        try:
            with orthanc.open(f"/dicom-web/{path}{query}", accept) as answer:
                return Response(answer.read(), media_type=answer.headers["Content-Type"])
        except urllib.error.HTTPError as error:
            with error:
                return Response(error.read(), error.code)

    app.add_api_route("/pacs/{path:path}", pacs, methods=["GET"])
    pages = viewer.router(fetch.VENDOR, dicomweb="/pacs")
    assert pages is not None
    app.include_router(pages)
    z = open_case(page, serve(app), viewer_case, str(sr.SeriesInstanceUID))
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(500)
    index = np.argwhere(viewer_case.masks["calcium"][z])
    points = volume.geometry.to_lps(np.column_stack([np.full(len(index), z), index]).astype(float))
    places = on_canvas(page, points)
    yellow = picture(page)[places[:, 0], places[:, 1]]
    assert (yellow[:, 0] - yellow[:, 2]).mean() > 60
    page.get_by_text(str(sr.SeriesDescription), exact=True).dblclick()
    page.wait_for_selector("text=Imaging Measurement Report")
    assert "Coronary artery calcium score: 100\n" in page.locator("[data-cy=viewport-grid]").inner_text()
    assert all("/thumbnail?" in text for text in complaints), complaints  # this Orthanc makes none


def test_only_the_viewers_own_files_are_served(with_viewer: str) -> None:
    for path in ("/viewer", "/viewer/app-config.js", "/viewer/app.bundle.css"):
        with urllib.request.urlopen(with_viewer + path, timeout=30) as answer:
            assert answer.headers["Content-Security-Policy"] == viewer.CONTENT_SECURITY_POLICY
            content = answer.read().decode()
        assert "__DICOMWEB__" not in content
    for path in (
        "/viewer/index.js",
        "/viewer/..%2f..%2ffetch.py",
        "/viewer/%2e%2e/%2e%2e/fetch.py",
        "/viewer//etc/passwd",
    ):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(with_viewer + path, timeout=30)


def test_without_its_files_there_is_no_viewer(tmp_path: Path) -> None:
    assert viewer.router(tmp_path) is None


# --- getting the files ------------------------------------------------------------------------------------


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a script of that name in front of, and instead of, npm."""

    def put(script: str) -> None:
        program = tmp_path / "bin" / "npm"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")

    return put


def kept(vendor: Path) -> None:
    (vendor / "ohif").mkdir(parents=True)
    (vendor / "ohif" / "index.html").write_text("before")


def test_nothing_changes_when_npm_fails(tmp_path: Path, npm: Callable[[str], None]) -> None:
    kept(tmp_path / "vendor")
    npm("echo 'npm error code ENOTFOUND' >&2; exit 1")
    with pytest.raises(
        InputError, match=r"npm could not get @ohif/app@3\.13\.2 \(npm error code ENOTFOUND\)"
    ):
        fetch.fetch(tmp_path / "vendor")
    assert [p.name for p in (tmp_path / "vendor").rglob("*")] == ["ohif", "index.html"]


def test_another_archive_is_refused(tmp_path: Path, npm: Callable[[str], None]) -> None:
    kept(tmp_path / "vendor")
    with tarfile.open(tmp_path / "other.tgz", "w:gz") as archive:
        archive.add(__file__, "package/dist/index.html")
    npm(f"cp {tmp_path / 'other.tgz'} ./ohif-app-3.13.2.tgz")
    with pytest.raises(InputError, match="is not the archive"):
        fetch.fetch(tmp_path / "vendor")
    assert (tmp_path / "vendor" / "ohif" / "index.html").read_text() == "before"


def test_without_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"install Node\.js"):
        fetch.fetch(tmp_path / "vendor")


def test_what_was_fetched() -> None:
    if not fetch.VENDOR.is_dir():
        pytest.skip("needs the viewer's files: make viewer")
    ohif, vega = fetch.VENDOR / "ohif", fetch.VENDOR / "vega"
    assert sum(p.stat().st_size for p in ohif.rglob("*")) < 55e6
    assert {p.name for p in vega.iterdir()} == {
        f"{name}.{ending}"
        for name in ("vega", "vega-lite", "vega-embed", "vega-interpreter")
        for ending in ("min.js", "LICENSE")
    }
    assert "MIT" in (ohif / "LICENSE").read_text()
    page = (ohif / "index.html").read_text()
    assert "<script>" not in page  # nothing inline
    for address in ("app.bundle.css", "app-config.js"):
        assert f'"/viewer/{address}"' in page
