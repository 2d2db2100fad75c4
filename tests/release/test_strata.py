"""Releases compared by kernel, maker, thickness and group, against pandas over the same numbers."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deepcac2.cli.main import main
from deepcac2.errors import InputError
from deepcac2.release.compare import Comparison, Pair
from deepcac2.release.strata import read_facts, strata, worst
from deepcac2.stats.agreement import group_names
from deepcac2.stats.tables import selected_series

KERNELS = {"STANDARD": "soft", "B50f": "sharp", "=cmd": "soft"}


def planted(n: int = 60) -> pd.DataFrame:
    """Scores of two releases, and what the scans are."""
    rng = np.random.default_rng(8)
    first = rng.choice([0.0, 50.0, 200.0, 900.0], n)
    frame = pd.DataFrame(
        {
            "series_uid": [f"1.2.{i}" for i in range(n)], "first": first,
            "second": np.where(rng.random(n) < 0.4, first * rng.uniform(0.2, 3, n), first),
            "kernel": rng.choice(list(KERNELS), n), "manufacturer": rng.choice(["GE", "SIEMENS", ""], n),
            "slice_thickness": rng.choice(["1.25", "2.0", "2.5"], n),
        }
    )  # fmt: skip
    frame.loc[0, "second"] = np.nan
    return frame


def release(path: Path, frame: pd.DataFrame, column: str) -> Path:
    """A release of reports alone."""
    with zipfile.ZipFile(path, "w") as archive:
        for row in frame.dropna(subset=[column]).itertuples():
            uid, score = row.series_uid, getattr(row, column)
            group = int(np.digitize(score, [0, 100, 300], right=True))
            report = {
                "Predicted Agatston Score": score,
                "Predicted Risk Group": group,
                "SeriesInstanceUID": uid,
            }
            archive.writestr(f"p/{uid}/DeepCAC.report.json", json.dumps(report))
    return path


def test_strata_and_work_list_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = planted()
    frame.drop(columns=["first", "second"]).to_csv(tmp_path / "facts.csv", index=False)
    both = frame.dropna()
    releases = [str(release(tmp_path / f"{c}.zip", both, c)) for c in ("first", "second")]
    listed = tmp_path / "worst.csv"
    command = [
        "release",
        "compare",
        *releases,
        "--facts",
        str(tmp_path / "facts.csv"),
        "--worklist",
        str(listed),
    ]
    assert main([*command, "--worst", "7", "--json"]) == 0
    found = {(s["by"], s["value"]): s for s in json.loads(capsys.readouterr().out)["strata"]}
    both = both.assign(
        kind=both["kernel"].map(KERNELS),
        maker=both["manufacturer"].replace("", "not known"),
        a=np.digitize(both["first"], [0, 100, 300], right=True),
        b=np.digitize(both["second"], [0, 100, 300], right=True),
        difference=both["second"] - both["first"],
    )
    for by, column in (("kernel", "kernel"), ("kind", "kind"), ("manufacturer", "maker")):
        for value, those in both.groupby(column):
            mine = found[by, value]
            assert mine["n"] == len(those)
            assert mine["mean_difference"] == pytest.approx(those["difference"].mean())
            assert mine["median_absolute"] == pytest.approx(those["difference"].abs().median())
            assert mine["same_group"] == pytest.approx((those["a"] == those["b"]).mean())
    assert {value for by, value in found if by == "thickness"} == {"1.25", "2", "2.5"}
    assert [value for by, value in found if by == "group"] == list(group_names())
    with listed.open(newline="") as file:
        rows = list(csv.DictReader(file))
    both["apart"] = (both["a"] - both["b"]).abs()
    order = both.assign(size=both["difference"].abs()).sort_values(["apart", "size"], ascending=False)
    assert [row["series_uid"] for row in rows] == order["series_uid"].head(7).tolist()
    assert not any(value.startswith("=") for row in rows for value in row.values())
    assert selected_series(listed) == set(order["series_uid"].head(7))
    assert main(command) == 0
    assert "kernel STANDARD: " in capsys.readouterr().out


def test_what_cannot_be_compared_comes_first() -> None:
    none = {"heart": None, "calcium": None}
    pairs = (
        Pair(place="p/1", dice=none, first=0.0, second=99.0),
        Pair(place="p/2", dice=none, first=None, second=5.0),
        Pair(place="p/3", dice=none, first=290.0, second=310.0),
        Pair(place="p/4", dice=none, first=3.0, second=3.0),
    )
    found = Comparison(pairs=pairs, only_first=(), only_second=(), scores=None)
    assert [p.place for p in worst(found, 10)] == ["p/2", "p/1", "p/3"]
    assert sum(s.n for s in strata(found, {}) if s.by == "kernel") == 3
    (one,) = (s for s in strata(found, {}) if s.by == "kernel")
    assert one.value == "not known"


def test_facts_need_the_series(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("kernel\nB30f\n")
    with pytest.raises(InputError, match="series_uid"):
        read_facts(tmp_path / "t.csv")
