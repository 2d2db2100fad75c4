"""Releases: built from a real run, verified, spoilt in many ways, compared."""

from __future__ import annotations

import csv
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import pytest

from deepcac2.batch.run import Means, run_folder
from deepcac2.cli.main import main
from deepcac2.dicom import Series, discover, read_series, write_segmentation
from deepcac2.errors import InputError, InputUnreadable
from deepcac2.imaging import Volume, labels
from deepcac2.imaging.labels import Labels
from deepcac2.outputs.report import REPORT
from deepcac2.pipeline import Case, Workflow
from deepcac2.pipeline.arteries import ARTERIES, NOT_CORONARY
from deepcac2.pipeline.facts import CALCIUM, CALCIUM_RUN, CT
from deepcac2.pipeline.results import ResultRow, read_parquet, result_row, write_parquet
from deepcac2.pipeline.scoring import ScoreCalcium
from deepcac2.release.build import (
    FILES,
    MANIFEST,
    MANIFEST_COLUMNS,
    SEG_NAME,
    Release,
    Selected,
    build_release,
)
from deepcac2.release.compare import compare
from deepcac2.release.verify import KEYS, verify
from deepcac2.scoring import RULES, risk_group, score
from deepcac2.simulation import default_geometry, simulate_patient
from deepcac2.simulation.dicom import write_patient
from deepcac2.stats.tables import selected_series


def scored(run: Path) -> list[str]:
    return [r.folder for r in read_parquet(run / "results.parquet") if r.status == "scored"]


def test_a_release_holds_what_the_published_one_holds(results: Path, tmp_path: Path) -> None:
    built = build_release(results, tmp_path / "a.zip")
    assert built.series == len(scored(results)) > 2
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
        for folder in scored(results):
            for name in FILES:
                assert archive.read(f"{folder}/{name}") == (results / folder / name).read_bytes()
        assert json.loads(archive.read(f"{folder}/{REPORT.file}")).keys() == {
            "Predicted Agatston Score", "Predicted Risk Group", "SeriesInstanceUID",
        }  # fmt: skip
        extra = {"README.md", "data_dictionary.csv", "results.parquet", "manifest.csv", "selection.json"}
        assert names == extra | {f"{f}/{n}" for f in scored(results) for n in FILES}
        dictionary = list(csv.DictReader(io.StringIO(archive.read("data_dictionary.csv").decode())))
    assert [d["column"] for d in dictionary] == list(vars(next(read_parquet(results / "results.parquet"))))
    assert all(d["meaning"] for d in dictionary)
    build_release(results, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_parts_hold_whole_series_and_verify_together(results: Path, tmp_path: Path) -> None:
    built = build_release(results, tmp_path / "a.zip", part_bytes=1)
    assert [p.name for p in built.parts] == [f"a-{i + 1:03d}.zip" for i in range(len(scored(results)))]
    with Release(*built.parts) as release:
        assert len(release.series) == len(scored(results))
        assert not verify(release).problems
    with Release(*built.parts[:-1]) as release:
        assert [p.message for p in verify(release).problems] == [
            f"{built.series} series were scored and {built.series - 1} are here: give all its parts"
        ]
    with pytest.raises(InputError, match="there twice"):
        Release(built.parts[0], built.parts[0])


@pytest.fixture(scope="module")
def stopped(trial: Path, cohort: Path, results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of what was selected, as it is when it was told to stop before its last two series."""
    out = tmp_path_factory.mktemp("stopped") / "results"
    shutil.copytree(results, out)
    for folder in scored(out)[-2:]:
        shutil.rmtree(out / folder)
    summary = run_folder(
        trial / "ct", out, workflow=Workflow.load("default"), means=Means(), only=selected_series(cohort),
        allow=frozenset({"coarse-pixels"}), running=lambda engine: engine.stop(),
    )  # fmt: skip
    assert summary.stopped
    return out


def test_a_run_says_what_was_selected_and_what_became_of_it(
    trial: Path, cohort: Path, results: Path, stopped: Path
) -> None:
    found = len(discover(trial / "ct").uids)
    selected, rows = selected_series(cohort), list(read_parquet(results / "results.parquet"))
    assert len(rows) == len(selected) < found
    fates = {s: sum(r.status == s for r in rows) for s in ("scored", "rejected", "failed")}
    said = json.loads((results / "run.json").read_text())["series"]
    assert said == {
        "found": found, "selected": len(selected), **fates, "missing": 0, "missing_series": [],
        "finished": True,
    }  # fmt: skip
    said = json.loads((stopped / "run.json").read_text())["series"]
    gone = selected - {r.series_uid for r in read_parquet(stopped / "results.parquet")}
    assert set(said.pop("missing_series")) == gone
    assert said == {
        "found": found, "selected": len(selected), **fates, "scored": fates["scored"] - 2, "missing": 2,
        "finished": False,
    }  # fmt: skip


def test_a_release_of_a_run_that_is_not_finished_is_refused_or_says_so(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, selected = tmp_path / "a.zip", Selected.of_run(stopped)
    assert selected is not None
    with pytest.raises(
        InputError, match=rf"not finished, 2 of {selected.selected} selected series are missing"
    ):
        build_release(stopped, out)
    assert not out.exists()
    with Release(stopped) as release:
        assert [p.place for p in verify(release).problems] == list(selected.missing_series)

    assert main(["release", "build", str(stopped), str(out), "--unfinished"]) == 0
    assert "not of a finished run: 2 of the selected series are missing" in capsys.readouterr().err
    with zipfile.ZipFile(out) as archive:
        readme = archive.read("README.md").decode()
        manifest = list(csv.DictReader(io.StringIO(archive.read("manifest.csv").decode())))
    assert "**This release is not of a finished run." in readme
    assert f"{selected.selected} were selected: {selected.scored} scored" in readme
    assert [m["path"] for m in manifest if m["sha256"] == "missing"] == list(selected.missing_series)
    assert main(["release", "verify", str(out)]) == 1
    said = capsys.readouterr().out
    assert "missing: 2\n" in said
    assert all(uid in said for uid in selected.missing_series)
    assert "nothing differs" not in said


def test_a_run_that_was_killed_or_says_nothing_is_not_taken_for_finished(
    results: Path, stopped: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(results, copy)
    content = json.loads((results / "run.json").read_text())
    at_work = {k: content["series"][k] for k in ("found", "selected")} | {"finished": False}
    for series in (at_work, None, {**content["series"], "missing": 1}, {**content["series"], "scored": "x"}):
        (copy / "run.json").write_text(json.dumps({**content, "series": series}))
        with pytest.raises(InputError, match="does not say what became of all selected series"):
            build_release(copy, tmp_path / "a.zip")
    build_release(copy, tmp_path / "a.zip", unfinished=True)
    with Release(tmp_path / "a.zip") as release:
        assert [p.code for p in verify(release).problems] == ["structure"]
    shutil.copy(stopped / "results.parquet", copy)  # an older table beside a newer record
    (copy / "run.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="not of one run"):
        build_release(copy, tmp_path / "b.zip")


@pytest.fixture(scope="module")
def fine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Series, Volume, np.ndarray]:
    """A CT with pixels below 1 mm², and a mask with lesions that the rules see differently."""
    folder = tmp_path_factory.mktemp("fine")
    inner = slice(0, 40), slice(100, 300), slice(100, 300)  # heart and spine
    patient = simulate_patient(5, geometry=default_geometry(5, size=400, slices=40).part(inner))
    write_patient(patient, folder)
    (series,) = (s for s in discover(folder).series if s.modality == "CT")
    volume = read_series(series).volume
    mask = patient.calcium.copy()
    bright = np.argwhere((volume.hu >= 250) & ~patient.calcium)
    mask[tuple(bright[len(bright) // 2])] = True  # one pixel: too small for some
    dull = np.argwhere((volume.hu > 60) & (volume.hu < 110) & patient.heart)
    z, y, x = dull[len(dull) // 2]
    mask[z, y : y + 3, x : x + 3] = True  # below 130 HU: some count it by its neighbours
    return series, volume, mask


@pytest.mark.parametrize("rule", [*RULES, "agatston-kvp"])
def test_verify_names_the_rule_that_made_the_scores(
    fine: tuple[Series, Volume, np.ndarray], tmp_path: Path, rule: str
) -> None:
    series, volume, mask = fine
    assert series.kvp == 100
    if rule == "agatston":  # that by the voltage gives the same at 120 kV
        for path in (tmp_path / "ct" / s.path.name for s in series.slices):
            path.parent.mkdir(exist_ok=True)
            header = pydicom.dcmread(series.slices[0].path.with_name(path.name))
            header.KVP = 120
            header.save_as(path)
        (series,) = discover(tmp_path / "ct").series
    ct = series.slices[0].path.parent
    place = tmp_path / series.patient_id / series.series_uid
    write_segmentation(
        place / SEG_NAME,
        series=series,
        geometry=volume.geometry,
        heart=mask,
        calcium=mask,
        algorithm_version="0",
    )
    scored = score(volume, mask, rule=rule, slice_thickness=series.slice_thickness, kvp=series.kvp)
    total = round(scored.total, 4)
    report = dict(zip(KEYS, (total, int(risk_group(total)), series.series_uid), strict=True))
    (place / REPORT.file).write_text(json.dumps(report))
    with Release(tmp_path) as release:
        found = verify(release, ct=ct)
    assert found.problems == ()
    assert found.with_ct == 1
    assert found.rule == rule


@pytest.fixture
def named(fine: tuple[Series, Volume, np.ndarray], tmp_path: Path) -> tuple[Path, ResultRow]:
    """The results of one series whose weights name its calcium, and its row of the table."""
    series, volume, mask = fine
    arteries, others = (np.zeros(mask.shape, np.uint8) for _ in range(2))
    arteries[mask] = 2
    arteries[mask & (np.arange(mask.shape[2]) > mask.shape[2] // 2)] = labels.NOT_SURE.value
    others[5, 5:9, 5:9] = 1
    facts = {
        CT: volume, CALCIUM: labels.calcium_labels(mask), CALCIUM_RUN: {},
        ARTERIES: Labels(array=arteries, classes=(*labels.ARTERIES, labels.NOT_SURE)),
        NOT_CORONARY: Labels(array=others, classes=labels.NOT_CORONARY),
    }  # fmt: skip
    case = ScoreCalcium()(Case(series=series, facts=facts))
    run = tmp_path / "run"
    row = result_row(case, folder=f"{series.patient_id}/{series.series_uid}")
    write_segmentation(
        run / row.folder / SEG_NAME, series=series, geometry=volume.geometry, heart=mask, calcium=mask,
        parts=[case[ARTERIES], case[NOT_CORONARY]], algorithm_version="0",
    )  # fmt: skip
    values = (row.agatston_score, row.risk_group, series.series_uid)
    (run / row.folder / REPORT.file).write_text(json.dumps(dict(zip(KEYS, values, strict=True))))
    write_parquet(run / "results.parquet", [row])
    return run, row


def test_a_release_by_artery(named: tuple[Path, ResultRow], tmp_path: Path) -> None:
    """The columns are carried, the SEG has more than two segments, and the arteries add up to the score."""
    run, row = named
    assert 0 < row.score_lad < row.agatston_score
    build_release(run, tmp_path / "a.zip", unfinished=True)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        readme = archive.read("README.md").decode()
        (tmp_path / "t.parquet").write_bytes(archive.read("results.parquet"))
    assert "2 coronary calcium; from 3 on calcium by artery" in readme
    assert "`score_lm` to `score_unsure`" in readme
    assert list(read_parquet(tmp_path / "t.parquet")) == [row]
    with Release(run) as release:
        assert verify(release).problems == ()
    with Release(tmp_path / "a.zip") as release:
        found = verify(release)
    assert [p.code for p in found.problems] == ["structure"]  # nobody knows what was selected
    assert found.checksums == 6


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"score_rca": 0.5}, True),
        ({"score_unsure": 0.0}, True),
        ({"agatston_score": 0.0}, True),
        ({"score_rca": 0.5, "rule": "deepcac2"}, False),  # its sum is rounded, its arteries are not
        ({"score_rca": None}, False),
        ({"score_aorta": 99.0}, False),  # no part of the score
    ],
)
def test_arteries_that_do_not_add_up_are_found(
    named: tuple[Path, ResultRow], tmp_path: Path, changes: dict[str, Any], wrong: bool
) -> None:
    run, row = named
    write_parquet(run / "results.parquet", [row, replace(row, **changes)])
    with Release(run) as release:
        problems = verify(release).problems
    assert [(p.code, p.place) for p in problems] == [("arteries", row.series_uid)] * wrong
    assert not wrong or "add up to" in problems[0].message


def test_a_table_that_is_none_is_found_and_an_older_one_is_not(named: tuple[Path, ResultRow]) -> None:
    run, row = named
    table = pd.DataFrame([vars(row)])
    for content, says in (
        (table.assign(score_rca="0.5"), "score_rca holds no numbers"),
        (table.assign(rule=1), "cannot be read"),
        (table.drop(columns="score_rca").assign(score_lad=9.0), ""),
    ):
        content.to_parquet(run / "results.parquet")
        with Release(run) as release:
            problems = verify(release).problems
        assert [p.code for p in problems] == ["structure"] * bool(says)
        assert not says or says in problems[0].message
    (run / "results.parquet").write_bytes(b"PAR1 and no more")
    with Release(run) as release:
        (problem,) = verify(release).problems
    assert (problem.code, problem.place) == ("structure", "results.parquet")


def test_segments_that_are_no_part_of_the_calcium_are_found(
    named: tuple[Path, ResultRow], tmp_path: Path
) -> None:
    run, row = named
    path = run / row.folder / SEG_NAME
    whole = path.read_bytes()
    for edit in (
        lambda items: items[2].AnatomicRegionSequence[0].update({"CodeValue": "10200004"}),  # liver
        lambda items: items[3].update({"SegmentNumber": 9}),
        lambda items: items[0].SegmentedPropertyTypeCodeSequence[0].update({"CodeValue": "10200004"}),
    ):
        ds = pydicom.dcmread(io.BytesIO(whole))
        edit(ds.SegmentSequence)
        ds.save_as(path)
        with Release(run) as release:
            problem, *others = verify(release).problems
        assert problem.code == "seg"
        assert "instead of heart and coronary calcium" in problem.message
        assert all("which it does not describe" in other.message for other in others)


Change = Callable[[dict[str, bytes], str], None]


def _report(**changes: object) -> Change:
    def change(files: dict[str, bytes], folder: str) -> None:
        content = json.loads(files[f"{folder}/{REPORT.file}"])
        content.update({k.replace("_", " "): v for k, v in changes.items()})
        files[f"{folder}/{REPORT.file}"] = json.dumps(content).encode()

    return change


def _seg(edit: Callable[[pydicom.Dataset], None]) -> Change:
    def change(files: dict[str, bytes], folder: str) -> None:
        ds = pydicom.dcmread(io.BytesIO(files[f"{folder}/{SEG_NAME}"]))
        edit(ds)
        buffer = io.BytesIO()
        ds.save_as(buffer)
        files[f"{folder}/{SEG_NAME}"] = buffer.getvalue()

    return change


def _without(name: str) -> Change:
    return lambda files, folder: files.pop(f"{folder}/{name}") and None


def _with(name: str, data: bytes) -> Change:
    return lambda files, folder: files.update({f"{folder}/{name}": data})


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (_without(SEG_NAME), "structure", "has no cac.seg.dcm"),
        (_without(REPORT.file), "structure", "has no DeepCAC.report.json"),
        (_with(REPORT.file, b"{"), "report", "no JSON"),
        (_with(REPORT.file, b'{"score": 1}'), "report", "not the three keys"),
        (_report(Predicted_Agatston_Score=-1), "report", "score is -1"),
        (_report(Predicted_Agatston_Score="12"), "report", "score is '12'"),
        (_report(Predicted_Risk_Group=9), "risk-group", "risk group 9"),
        (_report(SeriesInstanceUID="1.2"), "report", "the folder another"),
        (_report(Predicted_Agatston_Score=77.7, Predicted_Risk_Group=1), "score", "stored score 77.7"),
        (_with(SEG_NAME, b"no dicom"), "seg", "is no DICOM"),
        (_seg(lambda ds: setattr(ds, "PatientID", "other")), "seg", "PatientID"),
        (_seg(lambda ds: setattr(ds, "PixelData", ds.PixelData[:100])), "seg", "cut off"),
        (_seg(lambda ds: ds.SegmentSequence.__delitem__(slice(1, None))), "seg", "instead of heart and"),
        (_seg(lambda ds: ds.SegmentSequence.__delitem__(-1)), "seg", "which it does not describe"),
    ],
)  # fmt: skip
def test_what_is_spoilt_is_found(
    results: Path, trial: Path, tmp_path: Path, change: Change, code: str, says: str
) -> None:
    build_release(results, tmp_path / "a.zip")
    folder = scored(results)[0]
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        files = {n: archive.read(n) for n in archive.namelist() if n != MANIFEST}
    change(files, folder)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with Release(tmp_path / "b.zip") as release:
        found = verify(release, ct=trial if code == "score" else None)
    assert any(p.code == code and says in p.message and p.place == folder for p in found.problems), (
        found.problems
    )
    assert main(["release", "verify", str(tmp_path / "b.zip")]) == 1 or code == "score"


def test_the_manifest_tells_what_was_changed_afterwards(results: Path, tmp_path: Path) -> None:
    build_release(results, tmp_path / "a.zip")
    first, second, *_ = scored(results)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        files = {n: archive.read(n) for n in archive.namelist()}
    files["README.md"] += b"!"
    files.pop(f"{first}/{REPORT.file}")
    files["stray.txt"] = b"?"
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    with Release(tmp_path / "b.zip") as release:
        problems = {(p.place, p.message) for p in verify(release).problems}
    assert ("README.md", "differs from the manifest") in problems
    assert (f"{first}/{REPORT.file}", "is in the manifest and not there") in problems
    assert ("stray.txt", "is not in the manifest") in problems
    assert not any(second in place for place, _ in problems)
    assert MANIFEST_COLUMNS == ("path", "bytes", "sha256")


def test_what_is_no_release(tmp_path: Path, results: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"PK no zip")
    with pytest.raises(InputUnreadable, match="no whole zip file"):
        Release(tmp_path / "x.zip")
    with pytest.raises(InputUnreadable, match="does not exist"):
        Release(tmp_path / "y.zip")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("../../etc/passwd", "x")
    with Release(tmp_path / "z.zip") as release, pytest.raises(InputError, match="this is no release"):
        verify(release)
    with pytest.raises(InputError, match=r"holds no results\.parquet"):
        build_release(tmp_path, tmp_path / "a.zip")
    copy = tmp_path / "copy"
    shutil.copytree(results, copy)
    (copy / scored(copy)[0] / SEG_NAME).unlink()
    with pytest.raises(InputError, match="is missing"):
        build_release(copy, tmp_path / "a.zip")
    table = copy / "results.parquet"
    write_parquet(table, [replace(row, agatston_score=None) for row in list(read_parquet(table))])
    with pytest.raises(InputError, match="no score of the calcium network: a release is made of"):
        build_release(copy, tmp_path / "a.zip")
    assert not list(tmp_path.glob("*a.zip"))


@pytest.mark.slow
def test_two_releases_compared(
    nlst: Callable[[int], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = nlst(2).results()  # an agreement needs five series
    build_release(results, tmp_path / "a.zip")
    other = tmp_path / "other"
    shutil.copytree(results, other)
    for i, folder in enumerate(scored(other)):
        path = other / folder / REPORT.file
        report = json.loads(path.read_text())
        report["Predicted Agatston Score"] += 1 + i
        path.write_text(json.dumps(report))
    with Release(tmp_path / "a.zip") as first, Release(other) as second:
        found = compare(first, second)
    n = len(scored(results))
    assert found.mean_dice("heart") == (1.0, n)
    assert [round(p.difference, 3) for p in found.pairs] == list(range(n, 0, -1))
    assert found.scores is not None
    assert found.scores.estimates["mean_difference"].value == pytest.approx((n + 1) / 2)
    capsys.readouterr()
    assert main(["release", "compare", str(tmp_path / "a.zip"), str(other)]) == 0
    assert f"{n} series differ" in capsys.readouterr().out
