"""NLST's Participant data set, simulated with its names and codes, through the one command of figure 3."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deepcac2.cli.main import main
from deepcac2.errors import InputError
from deepcac2.stats.agreement import group_names
from deepcac2.stats.nlst import clinical_of

IDC_HAS = (
    *("dicom_patient_id", "pid", "race", "cigsmok", "gender", "age", "scr_days0", "scr_days1", "scr_days2"),
    *("candx_days", "canc_free_days", "cancyr", "de_stag", "dataset_version"),
)
"""Of IDC's ``nlst_prsn`` (version 14's columns, some of them)."""


def people(n: int, seed: int = 2) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Results and participants, with planted hazards: score groups 1, 1.2, 1.5, 2.5, heart disease 1.8."""
    rng = np.random.default_rng(seed)
    group, heart, smoking = rng.choice(4, n), rng.random(n) < 0.2, rng.random(n) < 0.5
    age, late = rng.integers(55, 75, n), rng.random(n) < 0.1
    rate = 0.03 * np.array([1, 1.2, 1.5, 2.5])[group] * np.where(heart, 1.8, 1) * 1.05 ** (age - 61)
    days, end = rng.exponential(365.25 / rate), rng.uniform(5.5, 7.2, n) * 365.25
    screen = np.where(late, rng.integers(370, 430, n), rng.integers(5, 90, n))
    ids = [f"{100000 + i}" for i in range(n)]
    results = pd.DataFrame(
        {
            "patient_id": ids, "study_uid": ids, "series_uid": ids, "status": "scored", "kernel": "STANDARD",
            "agatston_score": np.array(["0", "40", "200", "900"])[group], "study_date": "19990102",
            "time_point": np.where(late, "T1", "T0"),
        }
    )  # fmt: skip
    died = days <= end
    until = (screen + np.minimum(days, end)).round().astype(int)
    participants = pd.DataFrame(
        {
            "pid": ids, "dicom_patient_id": ids, "age": age, "gender": rng.choice([1, 2], n), "race": 1,
            "cigsmok": smoking.astype(int), "diaghear": heart.astype(int), "fup_days": until,
            "death_days": np.where(died, until, 0), "deathstat": np.where(died, rng.choice([1, 2, 3], n), 0),
            "scr_days0": np.where(late, 0, screen), "scr_days1": np.where(late, screen, 0), "scr_days2": 800,
        }
    ).astype(str)  # fmt: skip
    participants.loc[~died, "death_days"] = ".N"
    participants.loc[late, "scr_days0"] = ".N"
    return results, participants


def test_figure_3_is_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, participants = people(1500)
    results.to_csv(tmp_path / "results.csv", index=False)
    participants.to_csv(tmp_path / "prsn.csv", index=False)
    command = ["stats", "survival", str(tmp_path / "results.csv"), str(tmp_path / "prsn.csv"), "--nlst"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["persons"] == 1500
    assert found["events"] == (participants["deathstat"] != "0").sum()
    assert 5.5 < found["median_follow_up"] < 7.2
    ratios = {h["name"]: h for h in found["hazards"]}
    planted = {group_names()[-1]: 2.5, "heart_disease: yes": 1.8, "age": 1.05}
    for name, ratio in planted.items():
        assert ratios[name]["low"] < ratio < ratios[name]["high"]
    assert {"sex: female", "smoking: former"} & ratios.keys() or {
        "sex: male",
        "smoking: current",
    } & ratios.keys()
    assert main([*command, "--time", "fup_days"]) == 10
    assert main(command[:-1]) == 10
    assert "--time COLUMN and --event COLUMN are needed, or --nlst" in capsys.readouterr().err


def test_time_begins_with_the_screen_of_the_scan() -> None:
    results, participants = people(3)
    results["time_point"] = ["T0", "T1", "T2"]
    participants["deathstat"] = ["0", "2", "0"]
    participants["fup_days"] = ["2557", "2557", "2557"]
    participants["death_days"] = [".N", "730.5", ".N"]
    participants["scr_days0"] = ["0", "10", "10"]
    participants["scr_days1"] = ["365", "365.25", "365"]
    participants["scr_days2"] = ["800", "800", ".W"]
    found = clinical_of(results, participants)
    assert found["years"].tolist() == [f"{2557 / 365.25:.5f}", "1.00000", ""]
    assert found["died"].tolist() == ["0", "1", "0"]
    assert set(found["sex"]) <= {"male", "female"}


def test_what_is_missing_stays_missing_and_unknown_codes_are_errors() -> None:
    results, participants = people(20)
    participants.loc[0, ["diaghear", "cigsmok", "age", "deathstat"]] = [".M", "", ".", ".N"]
    row = clinical_of(results, participants).iloc[0]
    assert (row["heart_disease"], row["smoking"], row["age"], row["died"]) == ("", "", "", "")
    participants.loc[1, "cigsmok"] = "2"
    with pytest.raises(InputError, match="cigsmok holds '2'; known are 0: former, 1: current"):
        clinical_of(results, participants)
    participants.loc[1, "cigsmok"] = "yes"
    with pytest.raises(InputError, match="cigsmok holds 'yes', which is no number"):
        clinical_of(results, participants)
    with pytest.raises(InputError, match="the results have no time_point"):
        clinical_of(results.assign(time_point=""), participants)
    twice = pd.concat([participants.iloc[2:], participants.iloc[2:3]])
    with pytest.raises(InputError, match="stands in more than one row"):
        clinical_of(results, twice)


def test_idcs_subset_has_no_survival_and_says_so() -> None:
    results, participants = people(5)
    subset = participants[[name for name in IDC_HAS if name in participants]]
    with pytest.raises(InputError, match=r"no diaghear, fup_days, deathstat: .* no follow-up, death"):
        clinical_of(results, subset)
