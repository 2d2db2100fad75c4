"""Tables from outside: what is refused, what is left out and counted."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from deepcac2.errors import InputError, InputUnreadable
from deepcac2.stats.scans import one_scan_each, scored
from deepcac2.stats.tables import Flow, need, numbers, read_table, selected_series, unique_key, yes_no


def table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_text_stays_text_and_parquet_reads_as_csv(tmp_path: Path) -> None:
    csv = read_table(table(tmp_path / "a.csv", "id, score\n007,1.50\n12,\n"))
    assert csv["id"].tolist() == ["007", "12"]
    assert csv["score"].tolist() == ["1.50", ""]
    pd.DataFrame({"id": [7, 12], "score": [1.5, None]}).to_parquet(tmp_path / "a.parquet")
    parquet = read_table(tmp_path / "a.parquet")
    assert parquet["id"].tolist() == ["7", "12"]
    assert parquet["score"].tolist() == ["1.5", ""]


def test_numbers_of_parquet_read_back_as_the_same_numbers(tmp_path: Path) -> None:
    numbers = [0.1, 1 / 3, 7.0, 1e22, 2.5e-9, -4.0, 0.1, float("inf"), -0.0, float("nan"), None]
    pd.DataFrame({"x": numbers, "none": [None] * 11}).astype(float).to_parquet(tmp_path / "a.parquet")
    frame = read_table(tmp_path / "a.parquet")
    assert frame["x"].tolist()[2:6] == ["7", "1e+22", "2.5000000000000001e-09", "-4"]
    assert frame["x"].tolist()[8:] == ["0", "", ""]
    assert [float(text) for text in frame["x"][:8]] == numbers[:8]
    assert set(frame["none"]) == {""}


@pytest.mark.parametrize(
    ("name", "content", "error", "says"),
    [
        ("a.xlsx", "PK", InputError, "no .csv"),
        ("a.csv", "", InputUnreadable, "no table"),
        ("a.csv", "a,b\n", InputError, "no rows"),
        ("a.csv", "a,a\n1,2\n", InputError, "'a' stands there twice"),
        ("a.csv", "a,\n1,2\n", InputError, "a column has no name"),
        ("a.csv", "a,b\n1,2\n3,4,5\n", InputUnreadable, "no table"),
        ("a.parquet", "no parquet", InputUnreadable, "no table"),
    ],
)
def test_what_is_no_table_is_refused(
    tmp_path: Path, name: str, content: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        read_table(table(tmp_path / name, content))


def test_a_missing_file_and_latin_text(tmp_path: Path) -> None:
    with pytest.raises(InputUnreadable, match="cannot read"):
        read_table(tmp_path / "missing.csv")
    (tmp_path / "latin.csv").write_bytes("näme,b\n1,2\n".encode("latin-1"))
    with pytest.raises(InputUnreadable):
        read_table(tmp_path / "latin.csv")


def test_numbers_leave_out_and_count_the_rest() -> None:
    frame = pd.DataFrame({"x": ["1", " 2.5 ", "", "n/a", "inf", "-3", "99"]})
    flow = Flow("rows", len(frame))
    kept = numbers(frame, "x", flow, minimum=0, maximum=50)
    assert kept["x"].tolist() == [1.0, 2.5]
    assert [(s.reason, s.rows, s.left) for s in flow.steps] == [
        ("no x", 1, 6),
        ("x is no number", 2, 4),
        ("x below 0", 1, 3),
        ("x above 50", 1, 2),
    ]
    assert flow.left == 2


def test_yes_and_no_and_nothing_else() -> None:
    frame = pd.DataFrame({"x": ["1", "TRUE", " yes ", "0", "False", "NO", "1.0", "0.0", ""]})
    assert yes_no(frame, "x", "t").fillna(-1).tolist() == [1, 1, 1, 0, 0, 0, 1, 0, -1]
    for strange in ("2", "y", "n/a", "10", "01"):
        with pytest.raises(InputError, match=f"t: x holds '0', '{strange}'"):
            yes_no(pd.DataFrame({"x": ["0", strange]}), "x", "t")
    with pytest.raises(InputError, match="holds '0', '1', '2', '3', '4', …;"):
        yes_no(pd.DataFrame({"x": list("0123456")}), "x", "t")


def test_selected_series_are_those_that_say_so(tmp_path: Path) -> None:
    said = table(tmp_path / "a.csv", "series_uid,selected\n1.2,True\n1.3,false\n1.4,YES\n1.5,0\n")
    assert selected_series(said) == {"1.2", "1.4"}
    assert selected_series(table(tmp_path / "b.csv", "series_uid\n1.2\n1.3\n")) == {"1.2", "1.3"}
    for wrong, says in (("2", "selected holds '1', '2'"), ("x", "holds '1', 'x'"), ("", "empty in 1 of 2")):
        with pytest.raises(InputError, match=says):
            selected_series(table(tmp_path / "c.csv", f"series_uid,selected\n1.2,1\n1.3,{wrong}\n"))


def test_a_column_that_is_missing_and_a_key_that_is_not_one() -> None:
    frame = pd.DataFrame({"CAC_AI": ["1"], "PID": ["1"]})
    with pytest.raises(InputError, match="Perhaps you meant 'CAC_AI'"):
        need(frame, ["CAC_Al"], "the table")
    with pytest.raises(InputError, match="'5' stands in more than one row"):
        unique_key(pd.DataFrame({"id": ["5", "6", "5"]}), "id", "the table")


def results(rows: list[tuple[str, ...]]) -> pd.DataFrame:
    names = "patient_id study_uid series_uid status agatston_score study_date kernel n_slices"
    return pd.DataFrame([dict(zip(names.split(), r, strict=True)) for r in rows])


def test_one_scan_of_a_person_is_the_first_then_by_kernel_slices_and_uid() -> None:
    scans = scored(
        results(
            [
                ("p1", "s2", "late", "scored", "9", "20010102", "STANDARD", "300"),
                ("p1", "s1", "sharp", "scored", "8", "20000102", "BONE", "300"),
                ("p1", "s1", "fewer", "scored", "7", "20000102", "standard", "100"),
                ("p1", "s1", "taken", "scored", "6", "20000102", "STANDARD", "120"),
                ("p2", "s3", "dateless", "scored", "5", "", "C", "100"),
                ("p2", "s4", "dated", "scored", "4", "20020102", "LUNG", "90"),
                ("p3", "s5", "refused", "rejected", "", "20000102", "C", "90"),
                ("p4", "s6", "text", "scored", "high", "20000102", "C", "90"),
                ("p5", "s7", "again", "scored", "1", "20000102", "C", "90"),
                ("p5", "s7", "again", "scored", "1", "20000102", "C", "90"),
            ]
        )
    )
    assert [s.reason for s in scans.flow.steps] == [
        "rejected by a quality gate",
        "the same series_uid again",
        "agatston_score is no number",
    ]
    first, _ = one_scan_each(scans.frame, Flow("scans", len(scans.frame)), "first")
    assert first["series_uid"].tolist() == ["taken", "dated", "again"]
    visits, flow = one_scan_each(scans.frame, Flow("scans", len(scans.frame)), "visit")
    assert visits["series_uid"].tolist() == ["taken", "late", "dated", "again"]
    assert flow.left == 4


def test_a_table_without_scores_is_an_error() -> None:
    with pytest.raises(InputError, match="no scan of the results table is scored"):
        scored(results([("p", "s", "u", "failed", "", "", "", "")]))


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    """20,000 columns took half a minute and a million had no end; here the time is that of the bytes."""
    names = ["id", "a", *(f"c{i}" for i in range(20_000)), "b"]
    rows = [[f"{i}", f"a{i}", *("x" * 20_000), f"b{i}"] for i in range(3)]
    path = table(tmp_path / "wide.csv", "\n".join(",".join(r) for r in (names, *rows)))
    frame = read_table(path, needed=["b", "a"], only=["id", "nowhere"])
    wanted = {"id": ["0", "1", "2"], "a": ["a0", "a1", "a2"], "b": ["b0", "b1", "b2"]}
    assert frame.to_dict("list") == wanted
    with pytest.raises(InputError, match="has no column 'd'"):
        read_table(path, needed=["d"])
    frame.assign(other=1).to_parquet(tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet", needed=["a"], only=()).to_dict("list") == {"a": wanted["a"]}


@pytest.mark.parametrize(
    "content", ["a,b\n1,2\n3,4,5\n", 'a,b\n1,"2\n3,4\n', f"a,b\n{'x' * 200_000},1\n", "\n\n"]
)
def test_a_row_that_cannot_be_told_apart_is_an_error(tmp_path: Path, content: str) -> None:
    for only in (None, ["a"]):
        with pytest.raises(InputUnreadable, match="no table that can be read"):
            read_table(table(tmp_path / "a.csv", content), only=only)


def test_rows_that_are_short_and_blank_lines(tmp_path: Path) -> None:
    frame = read_table(table(tmp_path / "a.csv", "a,b\n1\n\n2, 3\n"))
    assert frame.to_dict("list") == {"a": ["1", "2"], "b": ["", "3"]}
