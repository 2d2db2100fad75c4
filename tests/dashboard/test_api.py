"""What the dashboard's server answers, against pandas on the same table."""

from __future__ import annotations

import csv
import io
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from starlette.testclient import TestClient

from deepcac2.dashboard.app import create_app
from deepcac2.dashboard.views import made_file, small_picture
from deepcac2.errors import DiskFull, InputError, InputUnreadable
from deepcac2.imaging.labels import HEART
from deepcac2.pipeline.results import MEANINGS, ResultRow, read_parquet, write_parquet

HERE = "http://127.0.0.1:8000"
CLASSES = [-1.0, 0, 10, 50, 100, 200, 300, 400, 1000, 2000, np.inf]


@pytest.fixture(scope="module")
def client(dashboard_results: Path) -> Iterator[TestClient]:
    with TestClient(create_app(dashboard_results), base_url=HERE) as client:
        yield client


@pytest.fixture(scope="module")
def table(dashboard_results: Path) -> pd.DataFrame:
    """The rows as they were written, with what the dashboard derives computed once more, with pandas."""
    frame = pd.read_parquet(dashboard_results / "results.parquet")
    known = frame[(frame.patient_id != "") & (frame.study_date != "")]
    first = (
        known.groupby(["patient_id", "study_uid"]).study_date.min().reset_index().sort_values("study_date")
    )
    first["study"] = first.groupby("patient_id").cumcount() + 1
    nr = frame.merge(first, on=["patient_id", "study_uid"], how="left").study
    by_order = ["" if np.isnan(n) else f"study {n:.0f}" for n in nr]
    header = frame.time_point.str.upper()
    frame["time_point"] = np.where(header != "", header, by_order)
    frame["thickness"] = frame.slice_thickness.round(2)
    warned = frame.warnings.map(lambda codes: "contrast" in codes.split(";"))
    frame["contrast"] = np.where(warned | frame.code.eq("contrast"), "contrast", "none noted")
    return frame


QUERIES: dict[str, Any] = {
    "": lambda t: t.status == t.status,
    "status=scored": lambda t: t.status == "scored",
    "status=failed&status=rejected": lambda t: t.status != "scored",
    "kernel=B30f&kernel=LUNG": lambda t: t.kernel.isin(["B30f", "LUNG"]),
    "kernel=": lambda t: t.kernel == "",
    'kernel=O\'Brien "k"': lambda t: t.kernel == 'O\'Brien "k"',
    "kernel=' OR true --": lambda t: t.status == "none of them",
    "time_point=T1": lambda t: t.time_point == "T1",
    "time_point=study 2": lambda t: t.time_point == "study 2",
    "risk_group=0&risk_group=3": lambda t: t.risk_group.isin([0, 3]),
    "risk_group=": lambda t: t.risk_group.isna(),
    "risk_group=x": lambda t: t.status == "none of them",
    "thickness=2.5": lambda t: t.thickness == 2.5,
    "manufacturer=SIEMENS&contrast=contrast": lambda t: (
        (t.manufacturer == "SIEMENS") & (t.contrast == "contrast")
    ),
    "warning=kvp&warning=contrast": lambda t: t.warnings.str.split(";").map(
        lambda w: bool({"kvp", "contrast"} & {*w})
    ),
    "code=metal": lambda t: t.code == "metal",
    "agatston_score_class=0&agatston_score_class=100–200": lambda t: (
        (t.agatston_score == 0) | t.agatston_score.between(100, 200, inclusive="right")
    ),
    "agatston_score_min=3&agatston_score_max=250.5": lambda t: t.agatston_score.between(3, 250.5),
    "patient=p01": lambda t: t.patient_id.str.contains("P01"),
    "search=SCAN 12": lambda t: t.series_description.str.contains("scan 12"),
    "search=100%": lambda t: t.status == "none of them",
    "status=scored&kernel=STANDARD&time_point=T0&search=p1": lambda t: (
        (t.status == "scored")
        & (t.kernel == "STANDARD")
        & (t.time_point == "T0")
        & (t.patient_id.str.contains("P1") | t.patient_id.str.contains("p1"))
    ),
}


def ask(client: TestClient, path: str, query: str = "") -> Any:
    pairs = [tuple(part.split("=", 1)) for part in query.split("&") if part]
    answer = client.get(path, params=pairs)  # type: ignore[arg-type]
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("query", QUERIES)
def test_filters(client: TestClient, table: pd.DataFrame, query: str) -> None:
    wanted = table[QUERIES[query](table)]
    found = ask(client, "/api/cases", f"{query}&size=200")
    assert found["series"] == len(wanted)
    assert found["patients"] == wanted.patient_id[wanted.patient_id != ""].nunique()
    assert found["pages"] == max(1, -(-len(wanted) // 200))
    uids = [row["series_uid"] for row in found["rows"]]
    assert len(uids) == min(200, len(wanted))
    assert set(uids) <= set(wanted.series_uid)


@pytest.mark.parametrize("query", QUERIES)
def test_charts(client: TestClient, table: pd.DataFrame, query: str) -> None:
    chosen = table[QUERIES[query](table)]
    found = ask(client, "/api/counts", query)["charts"]

    def counts(name: str) -> dict[str, int]:
        assert found["counts"][name]["left"] == 0
        return {r["value"]: r["n"] for r in found["counts"][name]["rows"]}

    assert counts("kernel") == chosen.kernel.value_counts().to_dict()
    assert counts("time_point") == chosen.time_point.value_counts().to_dict()
    grouped = chosen[chosen.risk_group.notna()].astype({"risk_group": int})
    assert counts("risk_group") == {str(g): n for g, n in grouped.risk_group.value_counts().items()}
    both = grouped.value_counts(["time_point", "risk_group"])
    assert {
        (r["time_point"], int(r["value"])): r["n"] for r in found["by_time"]["risk_group"]
    } == both.to_dict()
    scored = chosen[chosen.agatston_score.notna()]
    bins = np.histogram(scored.agatston_score, bins=np.nextafter(CLASSES, np.inf))[0]
    assert [*counts("agatston_score_class").values()] == [n for n in bins if n]
    mean = scored.groupby(["kernel", "time_point"]).agatston_score.agg(["mean", "median", "size"])
    means = found["means"]["agatston_score"]["rows"]
    assert {(r["kernel"], r["time_point"]) for r in means} == {*mean.index}
    for r in means:
        expected = mean.loc[(r["kernel"], r["time_point"])]
        assert [r["mean"], r["median"], r["n"]] == pytest.approx([*expected])


def test_facets_leave_out_their_own_filter(client: TestClient, table: pd.DataFrame) -> None:
    found = ask(client, "/api/counts", "status=scored&kernel=B30f")["facets"]
    scored = table[table.status == "scored"]
    kernels = {v["value"]: v["n"] for v in found["kernel"]["values"]}
    assert kernels == scored.kernel.value_counts().to_dict()
    chosen = scored[scored.kernel == "B30f"]
    makers = {v["value"]: v["n"] for v in found["manufacturer"]["values"]}
    assert makers == chosen.manufacturer.value_counts().to_dict()
    warnings = chosen.warnings.str.split(";").explode().loc[lambda w: w != ""].value_counts()
    assert {v["value"]: v["n"] for v in found["warning"]["values"]} == warnings.to_dict()
    thickness = [v["value"] for v in found["thickness"]["values"]]
    assert thickness == sorted(thickness, key=lambda v: float(v) if v else np.inf)


def test_of_several_filters_each_is_counted_without_itself(client: TestClient, table: pd.DataFrame) -> None:
    chosen = {"kernel": ["B30f", "LUNG"], "time_point": ["T1"], "status": ["scored"]}
    query = "&".join(f"{name}={value}" for name, values in chosen.items() for value in values)
    found = ask(client, "/api/counts", f"{query}&agatston_score_min=1&search=scan")["facets"]
    rest = table[(table.agatston_score >= 1) & table.series_description.str.contains("scan")]
    for name in (*chosen, "manufacturer", "code", "contrast"):
        own = rest
        for other, values in chosen.items():
            own = own if other == name else own[own[other].isin(values)]
        counted = {v["value"]: v["n"] for v in found[name]["values"] if v["n"]}
        assert counted == own[name].value_counts().to_dict()


def test_a_clinical_column_may_have_any_name(dashboard_results: Path, tmp_path: Path) -> None:
    path = tmp_path / "clinical.csv"
    path.write_text("patient_id,c0,c1,number,rowid,e\nP001,a,x,1,y,1\nP002,b,x,2,z,1\n")
    with TestClient(create_app(dashboard_results, clinical=path), base_url=HERE) as client:
        found = ask(client, "/api/counts", "c.c0=b&status=scored")["facets"]
        rows = ask(client, "/api/cases", "c.c0=b&status=scored&sort=number")["rows"]
    assert rows
    assert {row["patient_id"] for row in rows} == {"P002"}
    assert {row["number"] for row in rows} == {2}
    assert {v["value"]: v["n"] for v in found["c.c0"]["values"]}["b"] == len(rows)
    assert [v["value"] for v in found["c.c1"]["values"]] == ["x"]


def test_a_chosen_value_stays_in_its_list(client: TestClient) -> None:
    found = ask(client, "/api/counts", "kernel=B30f&search=no such thing")["facets"]
    assert {"value": "B30f", "n": 0} in found["kernel"]["values"]


@pytest.mark.parametrize("column", ["agatston_score", "patient_id", "kernel", "slice_thickness", "warnings"])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_sorting_and_paging(client: TestClient, table: pd.DataFrame, column: str, order: str) -> None:
    """All pages together are the whole table, in order, the missing values last either way."""
    rows: list[dict[str, Any]] = []
    for page in range(1, 6):
        found = ask(client, "/api/cases", f"sort={column}&order={order}&size=150&page={page}")
        assert (found["page"], found["pages"]) == (page, 5)
        rows += found["rows"]
    assert sorted(r["series_uid"] for r in rows) == sorted(table.series_uid)
    values = [r[column] for r in rows]
    given = [v for v in values if v not in (None, "")]
    assert given == sorted(given, reverse=order == "desc")
    assert all(v in (None, "") for v in values[len(given) :])


def test_a_page_beyond_the_last_is_the_last(client: TestClient) -> None:
    found = ask(client, "/api/cases", "page=99999&size=50")
    assert found["page"] == found["pages"] == 15
    assert len(found["rows"]) == 2


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("kernl=B30f", "there is no filter 'kernl'. Perhaps you meant 'kernel'."),
        ("sort=scores", "there is no column 'scores' to sort by"),
        ("sort=kernel;drop table everything", "there is no column"),
        ("sort=search_text", "there is no column"),
        ("order=down", "order is asc or desc"),
        ("agatston_score_min=many", "is no number"),
        ("columns=kernel,scores", "there is no column 'scores' to show"),
        ("page=-1", "page is a whole number"),
    ],
)
def test_what_is_wrong_is_said(client: TestClient, query: str, message: str) -> None:
    answer = client.get(f"/api/cases?{query}")
    assert answer.status_code == 422
    assert message in answer.json()["error"]


def test_export(client: TestClient, table: pd.DataFrame) -> None:
    """The same rows in the same order, and no text that a spreadsheet would run."""
    answer = client.get("/api/export.csv?status=scored&sort=agatston_score&order=desc")
    assert "attachment" in answer.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    wanted = table[table.status == "scored"]
    assert sorted(r["series_uid"] for r in rows) == sorted(wanted.series_uid)
    scores = [float(r["agatston_score"]) for r in rows]
    assert scores == sorted(wanted.agatston_score, reverse=True)
    assert {r["kernel"] for r in rows} == {k.replace("=1", "'=1") for k in wanted.kernel}
    assert list(rows[0]) == [*ResultRow.__dataclass_fields__, "time_point_from"]
    assert {r["time_point"] for r in rows} == {*wanted.time_point}


@pytest.mark.parametrize(
    "query",
    [
        "",
        "sort=kernel&order=desc",
        "search=scan 1&sort=agatston_score",
        "status=failed&kernel=LUNG",
        "search=~",
    ],
)
def test_an_export_in_parts_is_the_table_row_by_row(
    client: TestClient, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    """Byte by byte what Python's csv makes of the pages of the table and of the rows that were written."""
    monkeypatch.setattr("deepcac2.dashboard.table._ROWS_SORTED", 70)
    monkeypatch.setattr("deepcac2.dashboard.table.ROWS_AT_ONCE", 30)
    names = [*ResultRow.__dataclass_fields__, "time_point_from"]
    first = ask(client, "/api/cases", f"{query}&size=200&columns={','.join(names)}")
    pages = [first, *(ask(client, "/api/cases", f"{query}&size=200&columns={','.join(names)}&page={page}")
                      for page in range(2, first["pages"] + 1))]  # fmt: skip
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(names)
    for row in (row for page in pages for row in page["rows"]):
        cells = ["" if row[name] is None else row[name] for name in names]
        writer.writerow(["'" + cell if cell in ("=1+2",) else cell for cell in cells])
    text = client.get(f"/api/export.csv?{query}").text
    assert text == out.getvalue()
    assert text.count("\r\n") == first["series"] + 1
    if not query:
        assert first["series"] == len(table)


def test_not_scored(client: TestClient, table: pd.DataFrame) -> None:
    rows = client.get("/api/not-scored").json()
    others = table[table.status != "scored"].value_counts(["status", "code"])
    assert {(r["status"], r["code"]): r["n"] for r in rows} == others.to_dict()
    metal = next(r for r in rows if r["code"] == "metal")
    assert metal["meaning"].startswith("What would be counted is as dense as metal")


def test_case(client: TestClient, table: pd.DataFrame, dashboard_results: Path) -> None:
    (uid,) = table.series_uid[table.patient_id == "SIM-0003"]
    found = client.get(f"/api/cases/{uid}").json()
    assert found["details"]["score"]["total"] == pytest.approx(found["row"]["agatston_score"], abs=1e-3)
    assert len(found["details"]["score"]["lesions"]) == found["row"]["n_lesions"]
    assert "row" not in found["details"]
    picture = client.get(f"/api/cases/{uid}/preview.png")
    assert picture.headers["content-type"] == "image/png"
    stored = dashboard_results / str(found["row"]["folder"]) / "preview.png"
    assert picture.content == stored.read_bytes()


def test_the_columns_of_a_page(client: TestClient) -> None:
    """Those that are asked for, and those that every row has; all that there are have a meaning."""
    about = client.get("/api/about").json()
    names = [c["name"] for c in about["columns"]]
    assert set(MEANINGS) < set(names)
    assert all(c["meaning"] and c["label"] for c in about["columns"])
    usual = ask(client, "/api/cases", "size=1")["rows"][0]
    assert set(about["usual"]) < set(usual)
    assert "noise_hu" not in usual
    (row,) = ask(client, "/api/cases", "size=1&columns=noise_hu,rule")["rows"]
    assert {"noise_hu", "rule", "patient_id", "caution"} < set(row)
    assert "kernel" not in row


def test_a_case_without_files_is_shown_too(client: TestClient, table: pd.DataFrame) -> None:
    row = table[table.patient_id == "P003"].iloc[0]
    found = client.get(f"/api/cases/{row.series_uid}").json()
    assert (found["details"], found["preview"]) == (None, False)
    others = set(table.series_uid[table.patient_id == "P003"]) - {row.series_uid}
    assert {r["series_uid"] for r in found["others"]} == others
    assert client.get(f"/api/cases/{row.series_uid}/preview.png").status_code == 404


def test_clinical_table(dashboard_results: Path, table: pd.DataFrame, tmp_path: Path) -> None:
    ages = {f"P{i:03d}": 55 + i % 20 for i in range(200)}
    lines = [f'{p},{a},{"MF"[a % 2]},"Doe, J",visit' for p, a in ages.items()]
    path = tmp_path / "people.csv"
    path.write_text("pid,age,sex,PatientName,time_point\n" + "\n".join(lines) + "\n")
    with TestClient(create_app(dashboard_results, clinical=path, patient="pid"), base_url=HERE) as client:
        about = client.get("/api/about").json()
        assert about["clinical"]["columns"] == ["age", "sex", "clinical_time_point"]
        assert about["clinical"]["left_out"] == ["PatientName"]
        age = table.patient_id.map(ages)
        assert about["clinical"]["matched"] == int(age.notna().sum())
        found = ask(client, "/api/cases", "c.age_min=60&c.age_max=62&size=200")
        assert found["series"] == int(age.between(60, 62).sum())
        assert {r["age"] for r in found["rows"]} == {60.0, 61.0, 62.0}
        women = ask(client, "/api/cases", "c.sex=F")["series"]
        assert women == int((age % 2 == 1).sum())
        # a time point of the table stands in where the header has none, before the order of the studies
        header = table.time_point.str.startswith("T")
        points = ask(client, "/api/cases", "time_point=VISIT")["series"]
        assert points == int((~header & age.notna()).sum())
        assert "Doe" not in client.get("/api/export.csv").text
    with TestClient(
        create_app(dashboard_results, clinical=path, patient="pid", show_phi=True), base_url=HERE
    ) as client:
        assert "Doe" in client.get("/api/export.csv").text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pid,age\nP001,60\n", "has no column 'patient_id'.* Name it with --patient COLUMN"),
        ("patient_id,age\nP001,60\nP001,61\n", "stand in several rows"),
        ("patient_id,age\nnobody,60\n", "no patient_id of"),
    ],
)
def test_a_clinical_table_that_does_not_fit(
    dashboard_results: Path, tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "people.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        create_app(dashboard_results, clinical=path)


def test_without_a_table(dashboard_results: Path, tmp_path: Path) -> None:
    with pytest.raises(InputUnreadable, match="give the output folder of 'deepcac2 run'"):
        create_app(tmp_path)
    shutil.copytree(dashboard_results / "SIM-0003", tmp_path / "SIM-0003")
    with pytest.raises(InputUnreadable, match="the run has not ended"):
        create_app(tmp_path)
    write_parquet(tmp_path / "results.parquet", [])
    with pytest.raises(InputError, match="holds no series"):
        create_app(tmp_path)
    (tmp_path / "results.parquet").write_text("no parquet")
    with pytest.raises(InputUnreadable, match="cannot read"):
        create_app(tmp_path)


def test_tables_of_other_methods_and_older_versions(tmp_path: Path) -> None:
    """Columns that are missing are empty; a run of direct scoring has no Agatston score of the network."""
    columns: dict[str, list[Any]] = {
        "patient_id": ["A", "B"],
        "study_uid": ["1.1", "1.2"],
        "series_uid": ["1.1.1", "1.2.1"],
        "status": ["scored", "scored"],
        "study_date": ["", "20000102"],
        "n_slices": [100, 200],
        "folder": ["", ""],
        "screening_positive": [True, None],
        "direct_score": [12.5, 500.0],
        "direct_group": [2, 4],
    }
    pd.DataFrame(columns).to_parquet(tmp_path / "results.parquet")
    with TestClient(create_app(tmp_path), base_url=HERE) as client:
        about = client.get("/api/about").json()
        assert about["results"] == ["screening_positive", "direct_score", "direct_group"]
        for chosen in ("true", ""):
            assert ask(client, "/api/cases", f"screening_positive={chosen}")["series"] == 1
        assert "direct_score" in about["usual"]
        assert "agatston_score" not in about["usual"]
        rows = ask(client, "/api/cases", "sort=direct_score&order=desc")["rows"]
        assert [r["direct_score"] for r in rows] == [500.0, 12.5]
        charts = ask(client, "/api/counts")["charts"]
        assert charts["counts"].keys() == {"kernel", "time_point", "direct_group"}
        assert charts["counts"]["kernel"]["rows"] == [{"value": "", "n": 2}]
        assert [r["value"] for r in charts["by_time"]["direct_group"]] == ["4", "2"]
        assert charts["means"] == {}
        facets = ask(client, "/api/counts")["facets"]
        assert facets["direct_score"] == {"min": 12.5, "max": 500.0}
        assert not {"agatston_score", "agatston_score_class", "risk_group"} & set(facets)
        assert client.get("/api/export.csv").text.count("\n") == 3


def test_the_table_is_gone_when_the_server_is(dashboard_results: Path) -> None:
    app = create_app(dashboard_results)
    database = app.state.results.database
    with TestClient(app, base_url=HERE):
        assert database.stat().st_mode & 0o077 == 0 or database.parent.stat().st_mode & 0o077 == 0
    assert not database.exists()


def test_no_space_for_the_copy_of_the_table_is_said(
    dashboard_results: Path, tmp_path: Path, private_mounts: list[str]
) -> None:
    """A file system of its own for temporary files, too small for the copy."""
    rows = list(read_parquet(dashboard_results / "results.parquet"))
    many = (replace(rows[i % len(rows)], series_uid=f"1.2.3.{i}" + "4" * 40) for i in range(6_000))
    write_parquet(tmp_path / "results.parquet", many)
    small = tmp_path / "small"
    small.mkdir()
    mount = f"mount -t tmpfs -o size=1m tmpfs {small}"
    run = shlex.join([sys.executable, "-m", "deepcac2", "dashboard", str(tmp_path), "--port", "0"])
    done = subprocess.run(
        [*private_mounts, f"{mount} && TMPDIR={small} {run}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == DiskFull.exit_code
    assert done.stderr.strip().splitlines() == [
        f"error: no space left in {small} for a copy of the table; free some, or set TMPDIR to a folder "
        "with space"
    ]


def test_one_maker_in_several_spellings_is_one(dashboard_results: Path, tmp_path: Path) -> None:
    (row, *_) = read_parquet(dashboard_results / "results.parquet")
    spelt = [
        "GE MEDICAL SYSTEMS",
        "GE Medical Systems",
        " GE  MEDICAL SYSTEMS ",
        "GE MEDICAL SYSTEMS",
        "Philips",
        "",
    ]
    rows = [replace(row, series_uid=f"1.{nr}", manufacturer=maker) for nr, maker in enumerate(spelt)]
    write_parquet(tmp_path / "results.parquet", rows)
    with TestClient(create_app(tmp_path), base_url=HERE) as client:
        found = client.get("/api/counts").json()["facets"]["manufacturer"]["values"]
        assert {v["value"]: v["n"] for v in found} == {"GE MEDICAL SYSTEMS": 4, "Philips": 1, "": 1}
        chosen = client.get("/api/cases", params={"manufacturer": "GE MEDICAL SYSTEMS"}).json()
        assert chosen["series"] == 4


def test_numbers_that_are_not_whole_are_a_range(dashboard_results: Path, tmp_path: Path) -> None:
    """Though there are few of them: nobody ticks boxes of 22.4 and 27.9."""
    path = tmp_path / "clinical.csv"
    path.write_text("patient_id,bmi,visits\nP001,22.4,1\nP002,27.9,2\n")
    with TestClient(create_app(dashboard_results, clinical=path), base_url=HERE) as client:
        kinds = {f["name"]: f["kind"] for f in client.get("/api/about").json()["filters"]}
        assert (kinds["c.bmi"], kinds["c.visits"]) == ("range", "values")


def test_a_range_the_wrong_way_round_is_told(client: TestClient) -> None:
    answer = client.get("/api/cases", params={"agatston_score_min": "500", "agatston_score_max": "10"})
    assert answer.status_code == 422
    assert "from 500 to 10 is no range" in answer.json()["error"]


def test_an_address_that_is_none_is_a_page_for_people(client: TestClient) -> None:
    answer = client.get("/nothing")
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
    assert client.get("/api/nothing").json()["error"]


def test_before_and_after_are_those_of_the_table_whatever_page_they_are_on(client: TestClient) -> None:
    """All pages of the table, one after another, are the list that before and after go through."""
    query = "status=scored&kernel=STANDARD&sort=agatston_score&order=desc"
    size = 25
    pages = ask(client, "/api/cases", f"{query}&size={size}")["pages"]
    found = [ask(client, "/api/cases", f"{query}&size={size}&page={n + 1}")["rows"] for n in range(pages)]
    uids = [row["series_uid"] for rows in found for row in rows]
    assert len(uids) > 2 * size
    for nr in (0, 1, size - 1, size, len(uids) - 1):
        assert ask(client, f"/api/cases/{uids[nr]}/beside", f"{query}&size={size}&page=2") == {
            "number": nr + 1,
            "all": len(uids),
            "before": uids[nr - 1] if nr else None,
            "after": uids[nr + 1] if nr + 1 < len(uids) else None,
        }
    assert ask(client, f"/api/cases/{uids[0]}/beside", "status=rejected") is None
    assert ask(client, "/api/cases/1.2.3'OR'1/beside") is None
    assert client.get(f"/api/cases/{uids[0]}/beside?kernal=x").status_code == 422


def test_a_small_picture_and_no_error_where_there_is_none(
    client: TestClient, table: pd.DataFrame, dashboard_results: Path
) -> None:
    from PIL import Image

    (row,) = (r for r in table.itertuples() if (dashboard_results / r.folder / "preview.png").is_file())
    answer = client.get(f"/api/cases/{row.series_uid}/thumbnail.png")
    assert answer.content[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(answer.content) < 64 << 10
    shown = np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB")).astype(int)
    outline = np.nonzero(np.abs(shown - HEART.colour).max(axis=2) < 60)
    assert max(np.ptp(outline[0]), np.ptp(outline[1])) > 0.7 * len(shown)  # it is cut to the heart
    red = (shown[..., 0] > 200) & (shown[..., 1] < 100)
    assert red.any()
    again = {"If-None-Match": answer.headers["etag"]}
    answer = client.get(f"/api/cases/{row.series_uid}/thumbnail.png", headers=again)
    assert (answer.status_code, answer.content) == (304, b"")
    other = next(r for r in table.itertuples() if r.series_uid not in ("", row.series_uid))
    answer = client.get(f"/api/cases/{other.series_uid}/thumbnail.png")
    assert (answer.status_code, answer.content) == (204, b"")
    assert client.get("/api/cases/1.2.3/thumbnail.png").status_code == 404
    assert client.get("/api/cases/..%2F..%2Fx/thumbnail.png").status_code == 404


def test_a_picture_that_was_made_anew_is_shown(tmp_path: Path) -> None:
    from PIL import Image

    place = tmp_path / "results" / "P" / "1.2.3"
    place.mkdir(parents=True)
    path, folder = place / "preview.png", tmp_path / "results"
    shown = []
    for colour in ("red", "green"):
        Image.new("RGB", (1080, 784), colour).save(path)
        shown.append(small_picture(place, folder))
    assert None not in shown
    assert shown[0] != shown[1]
    path.rename(tmp_path / "elsewhere.png")
    path.symlink_to(tmp_path / "elsewhere.png")
    assert small_picture(place, folder) is None
    path.unlink()
    path.write_bytes(b"no picture")
    assert small_picture(place, folder) is None
    assert small_picture(None, folder) is None


def test_only_what_the_run_says_to_have_written_is_handed_out(tmp_path: Path) -> None:
    place = tmp_path / "P" / "1.2.3"
    place.mkdir(parents=True)
    listed = ["cac.pdf", "cac.seg.dcm", "report.json", "../other.pdf", "gone.pdf", "link.pdf"]
    (place / "details.json").write_text(json.dumps({"outputs": listed}))
    (tmp_path / "P" / "other.pdf").write_bytes(b"%PDF")
    for name in ("cac.pdf", "cac.seg.dcm", "report.json", "unlisted.pdf"):
        (place / name).write_bytes(b"content")
    (place / "link.pdf").symlink_to("/etc/hostname")
    found = {name: made_file(tmp_path, {"folder": "P/1.2.3"}, name) for name in (*listed, "unlisted.pdf")}
    assert {name: path.name for name, path in found.items() if path is not None} == {
        "cac.pdf": "cac.pdf",
        "cac.seg.dcm": "cac.seg.dcm",
    }


def test_without_the_viewers_files_no_link_leads_to_it(client: TestClient, table: pd.DataFrame) -> None:
    uid = table.series_uid[table.patient_id == "SIM-0003"].iloc[0]
    answer = client.get(f"/api/cases/{uid}/viewer", follow_redirects=False)
    assert answer.status_code == 404
