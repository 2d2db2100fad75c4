"""The pictures of slices: which there are, and what they show."""

from __future__ import annotations

import io
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from PIL import Image
from starlette.testclient import TestClient

from deepcac2.dashboard.app import create_app
from deepcac2.dashboard.files import read_details
from deepcac2.dashboard.slices import slices_of
from deepcac2.dashboard.store import Row, StoredSeries
from deepcac2.dicom import discover, read_series
from deepcac2.dicom.seg.reader import segment_frames
from deepcac2.imaging.labels import ARTERIES, CALCIUM, NOT_CORONARY, NOT_SURE
from deepcac2.scoring import Rule, score


def read(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=60) as answer:
        content: bytes = answer.read()
    return content


def picture(address: str) -> npt.NDArray[np.int16]:
    """RGB, int16 so that differences do not wrap."""
    return np.asarray(Image.open(io.BytesIO(read(address)))).astype(np.int16)


@pytest.fixture(scope="module")
def base(served: str, viewer_case: Any) -> str:
    return f"{served}/api/cases/{viewer_case.series}/slices"


def test_overview(base: str, viewer_case: Any) -> None:
    found = json.loads(read(base))
    assert found["count"] == len(viewer_case.files)
    z = np.flatnonzero(viewer_case.masks["calcium"].any(axis=(1, 2)))
    assert found["counted"]
    assert set(found["counted"]) <= set(z.tolist())
    assert found["first"] in found["counted"]


@pytest.fixture
def with_viewer(viewer_case: Any, tmp_path: Path) -> Callable[[Path], TestClient]:
    """Asks the dashboard of a results folder that has a viewer."""
    (tmp_path / "ohif").mkdir()
    (tmp_path / "ohif" / "index.html").write_text("a viewer")

    def asks(results: Path) -> TestClient:
        app = create_app(results, ct=viewer_case.ct, vendor=tmp_path)
        return TestClient(app, base_url="http://127.0.0.1:8000")

    return asks


def test_a_row_leads_to_the_viewer_at_the_slice_of_the_overview(
    base: str, viewer_case: Any, with_viewer: Callable[[Path], TestClient]
) -> None:
    with with_viewer(viewer_case.results) as client:
        answer = client.get(f"/api/cases/{viewer_case.series}/viewer", follow_redirects=False)
        assert client.get("/api/cases/1.2.3/viewer", follow_redirects=False).status_code == 404
    place = urlsplit(answer.headers["location"])
    assert (answer.status_code, place.scheme, place.netloc, place.path) == (303, "", "", "/viewer")
    asked = dict(parse_qsl(place.query))
    assert asked["StudyInstanceUIDs"] == viewer_case.study
    assert asked["SeriesInstanceUIDs"] == f"{viewer_case.series},{viewer_case.seg}"
    assert asked["slice"] == json.loads(read(base))["instance"] != ""


def test_the_viewer_opens_segmentation_and_report_with_the_ct(
    named_case: Any, viewer_case: Any, with_viewer: Callable[[Path], TestClient]
) -> None:
    with with_viewer(named_case.results) as client:
        address = client.get(f"/api/cases/{viewer_case.series}").json()["viewer"]
    asked = dict(parse_qsl(urlsplit(address).query))
    seg, sr = (
        str(pydicom.dcmread(path, stop_before_pixels=True).SeriesInstanceUID)
        for path in (named_case.seg_file, named_case.sr_file)
    )
    assert asked["SeriesInstanceUIDs"].split(",") == [viewer_case.series, seg, sr]
    assert asked["initialSeriesInstanceUID"] == seg


def test_the_overlay_is_where_the_masks_are(base: str, viewer_case: Any) -> None:
    """The slice comes as it is stored (supine), enlarged; only the heart edge and calcium differ."""
    z = json.loads(read(base))["first"]
    plain, marked = picture(f"{base}/{z}.png"), picture(f"{base}/{z}.png?overlay=1")
    ds = pydicom.dcmread(list(viewer_case.files.values())[z])
    grey = (np.clip(ds.pixel_array * 1.0 + ds.RescaleIntercept, -160, 240) + 160) / 400 * 255
    enlarged = np.asarray(
        Image.fromarray(grey.astype(np.uint8)).resize(plain.shape[1::-1], Image.Resampling.BILINEAR)
    )
    assert (np.abs(plain[..., 0] - enlarged) <= 1).all()
    assert (plain == plain[..., :1]).all()  # grey

    heart, calcium = viewer_case.masks["heart"][z], viewer_case.masks["calcium"][z]
    red = (marked == (255, 60, 60)).all(axis=-1)
    blue = (marked == (80, 200, 255)).all(axis=-1)
    assert red.any()
    scale = plain.shape[0] / heart.shape[0]
    rows, columns = (((np.nonzero(red)[axis] + 0.5) / scale).astype(int) for axis in (0, 1))
    assert calcium[rows, columns].all()
    rows, columns = (((np.nonzero(blue)[axis] + 0.5) / scale).astype(int) for axis in (0, 1))
    assert len(rows) > 4 * np.sqrt(heart.sum())
    assert heart[rows, columns].all()
    changed = (marked != plain).any(axis=-1)
    assert (changed <= (red | blue)).all()


def test_the_overlay_is_what_counted_by_the_recorded_rule(
    viewer_case: Any, viewer_app: Any, serve: Any, tmp_path: Path
) -> None:
    """By a rule of at least 40 pixels whole lesions of the mask, of 130 HU and more, do not count."""
    results = tmp_path / "results"
    shutil.copytree(viewer_case.results, results)
    (details,) = results.rglob("details.json")
    series = next(s for s in discover(viewer_case.ct).series if s.series_uid == viewer_case.series)
    volume, mask = read_series(series).volume, viewer_case.masks["calcium"]
    found = score(volume, mask, rule=Rule(name="large", connectivity=26, min_voxels=40))
    bright = mask & (volume.hu >= 130)
    assert 0 < found.n_counted < bright.sum()
    content = json.loads(details.read_text())
    details.write_text(json.dumps({**content, "score": found.to_dict()}))
    base = f"{serve(viewer_app(replace(viewer_case, results=results)))}/api/cases/{viewer_case.series}/slices"
    whole, parts = ((bright != found.counted).any(axis=(1, 2)), found.counted.any(axis=(1, 2)))
    some = [z for where in (whole & parts, whole & ~parts, ~whole & parts) for z in np.flatnonzero(where)[:3]]
    assert len(some) >= 4
    for z in some:
        marked = (picture(f"{base}/{z}.png?overlay=1") == (255, 60, 60)).all(axis=-1)
        scale = marked.shape[0] / mask.shape[1]
        seen = np.zeros(mask.shape[1:], bool)
        rows, columns = ((np.nonzero(marked)[axis] + 0.5) / scale for axis in (0, 1))
        seen[rows.astype(int), columns.astype(int)] = True
        np.testing.assert_array_equal(seen, found.counted[z])
    content["score"] = {**found.to_dict(), "total": found.total + 1}
    details.write_text(json.dumps(content))
    other = (
        f"{serve(viewer_app(replace(viewer_case, results=results)))}/api/cases/{viewer_case.series}/slices"
    )
    z = int(found.counted.sum(axis=(1, 2)).argmax())
    with pytest.raises(urllib.error.HTTPError) as caught:
        read(f"{other}/{z}.png?overlay=1")
    assert b"the results say" in caught.value.read()
    details.write_text(json.dumps({**content, "score": None}))  # as an exclusion leaves it: all of the mask
    marked = (picture(f"{other}/{z}.png?overlay=1") == (255, 60, 60)).all(axis=-1)
    assert marked.sum() == pytest.approx(mask[z].sum() * scale**2, rel=0.2)


def test_masks_slice_by_slice_are_those_of_the_file(viewer_case: Any) -> None:
    frames = segment_frames(viewer_case.seg_file)
    (series,) = (s for s in discover(viewer_case.ct).series if s.series_uid == viewer_case.series)
    for z, ref in enumerate(series.slices):
        found = frames.masks(ref)
        for kind, mask in viewer_case.masks.items():
            assert (found[kind] == mask[z]).all()
        assert ("heart" in frames.kinds(ref)) == viewer_case.masks["heart"][z].any()


def test_slices_are_numbered_as_in_the_run(viewer_case: Any) -> None:
    """The run left out two blank slices at the start and three at the end, and a copy of the fifth."""
    (series,) = (s for s in discover(viewer_case.ct).series if s.series_uid == viewer_case.series)
    given = [*series.slices[:5], series.slices[4], *series.slices[5:]]
    row = Row(
        series_uid="", study_uid="", patient_id="", study_date="", status="scored", n_slices=0, folder=None
    )
    stored = StoredSeries(row=row, series_uid="", modality="CT", instances={}, slices=tuple(given))
    assert slices_of(stored, {}) == series.slices
    geometry = {
        "origin": series.slices[2].position,
        "axes": [[0, 0, 1], [0, 1, 0], [1, 0, 0]],
        "shape": [len(series.slices) - 5, 192, 192],
    }
    assert slices_of(stored, {"geometry": geometry}) == series.slices[2:-3]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("1.2.3/slices", 404),
        ("x/slices", 400),
        ("{series}/slices/5000.png", 404),
        ("{series}/slices/-1.png", 400),
    ],
)
def test_refusals(served: str, viewer_case: Any, path: str, status: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        read(f"{served}/api/cases/{path.format(series=viewer_case.series)}")
    assert caught.value.code == status
    assert len(caught.value.read()) < 120


def test_arteries_and_what_was_not_counted_have_their_colours(
    named_case: Any, viewer_case: Any, viewer_app: Any, serve: Any
) -> None:
    """Each colour is where its class is, and of an artery where it counted; together that is everything."""
    case = replace(viewer_case, results=named_case.results)
    base = f"{serve(viewer_app(case))}/api/cases/{viewer_case.series}/slices"
    assert json.loads(read(base))["classes"] == ["LAD", "RCA", "artery not sure", "aorta", "pericardium"]
    named = {
        **{
            label: (named_case.arteries == label.value) & named_case.counted
            for label in (*ARTERIES, NOT_SURE)
        },
        **{label: named_case.others == label.value for label in NOT_CORONARY},
    }
    named = {label: mask for label, mask in named.items() if mask.any()}
    assert {label.name for label in named} == {"LAD", "RCA", "artery not sure", "aorta", "pericardium"}
    for z in {int(mask.sum(axis=(1, 2)).argmax()) for mask in named.values()}:
        plain, marked = picture(f"{base}/{z}.png"), picture(f"{base}/{z}.png?overlay=1")
        changed = (plain != marked).any(axis=-1)  # some colours are greys, as a CT has
        assert not (marked == CALCIUM.colour).all(axis=-1).any()
        for label, mask in named.items():
            enlarged = Image.fromarray(mask[z].astype(np.uint8)).resize(
                marked.shape[1::-1], Image.Resampling.NEAREST
            )
            there, coloured = np.asarray(enlarged) > 0, (marked == label.colour).all(axis=-1)
            assert coloured[there].all(), label.name
            assert not (coloured & changed & ~there).any(), label.name


@pytest.mark.parametrize(("up", "numbers"), [(1.0, [3, 5]), (-1.0, [6, 8])])
def test_lesions_of_older_runs_get_the_numbers_of_their_slices(
    tmp_path: Path, up: float, numbers: list[int]
) -> None:
    """They have 0-based indices alone, under a name that no longer says so."""
    geometry = {"origin": [0, 0, 0], "shape": [10, 4, 4], "axes": [[0, 0, up], [0, 1, 0], [1, 0, 0]]}
    score = {"total": 1, "parameters": {}, "lesions": [{"slices": [2, 4]}]}
    (tmp_path / "details.json").write_text(json.dumps({"geometry": geometry, "score": score}))
    (lesion,) = read_details(tmp_path / "details.json", tmp_path)["score"]["lesions"]
    assert lesion["slice_numbers"] == numbers
