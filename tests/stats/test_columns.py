"""Agreement of two columns, on the published table of DeepCAC v1 and on tables that are wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from sklearn.metrics import accuracy_score, cohen_kappa_score, confusion_matrix

from deepcac2.errors import InputError
from deepcac2.reporting.agreement_figures import agreement_figures
from deepcac2.reporting.statistics import agreement_page
from deepcac2.stats.agreement import group_names
from deepcac2.stats.columns import compare_columns
from deepcac2.stats.tables import read_table


def frame(a: np.ndarray, b: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"ai": [f"{v:.6f}" for v in a], "manual": [f"{v:.6f}" for v in b]})


def test_published_table_of_deepcac_v1(shared_data: Path) -> None:
    table = read_table(shared_data / "results" / "DeepCAC_v1_Results_NLST.csv")
    study = compare_columns(table, ai="CAC_AI", reference="CAC_manual", patient="PID")
    plain = pd.read_csv(shared_data / "results" / "DeepCAC_v1_Results_NLST.csv")
    groups = [pd.cut(plain[c], [-1, 0, 100, 300, 1e9], labels=False) for c in ("CAC_manual", "CAC_AI")]
    found = {name: e.value for name, e in study.result.estimates.items()}
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(plain["CAC_AI"], plain["CAC_manual"])[0])
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(plain["CAC_AI"], plain["CAC_manual"])[0])
    assert found["accuracy"] == pytest.approx(accuracy_score(*groups))
    for name, weights in (("kappa", None), ("kappa_linear", "linear"), ("kappa_quadratic", "quadratic")):
        assert found[name] == pytest.approx(cohen_kappa_score(*groups, weights=weights))
    np.testing.assert_array_equal(study.result.confusion, confusion_matrix(*groups))
    assert study.flow.left == 396


def test_groups_by_other_cut_points_and_from_100() -> None:
    a = np.array([0, 5, 10, 99, 100, 401, 0, 1])
    b = np.array([0, 11, 9, 100, 99, 500, 3, 0])
    study = compare_columns(frame(b, a), ai="ai", reference="manual", cuts=(0, 1, 10, 100, 400))
    assert study.names == ("0", ">0–1", ">1–10", ">10–100", ">100–400", ">400")
    assert study.result.estimates["sensitivity_from_100"].value == pytest.approx(1 / 2)
    assert study.result.estimates["specificity_from_100"].value == pytest.approx(5 / 6)
    assert study.result.estimates["sensitivity_above_0"].value == pytest.approx(5 / 6)
    assert int(study.result.confusion.sum()) == 8


def test_rows_without_two_scores_are_left_out_and_too_few_is_an_error() -> None:
    table = frame(np.arange(8.0), np.arange(8.0))
    table.loc[0, "ai"] = ""
    table.loc[1, "manual"] = "none"
    table.loc[2, "manual"] = "-4"
    study = compare_columns(table, ai="ai", reference="manual")
    assert study.flow.left == 5
    assert [s.rows for s in study.flow.steps] == [1, 1, 1]
    with pytest.raises(InputError, match="4 rows hold two scores"):
        compare_columns(table.iloc[:7], ai="ai", reference="manual")


@pytest.mark.parametrize("cuts", [(), (100, 0), (0, 0, 1), (-1, 3)])
def test_cut_points_must_ascend(cuts: tuple[float, ...]) -> None:
    table = frame(np.arange(8.0), np.arange(8.0))
    with pytest.raises(InputError, match="must ascend"):
        compare_columns(table, ai="ai", reference="manual", cuts=cuts)


def test_a_page_of_scores_that_are_all_alike() -> None:
    study = compare_columns(frame(np.zeros(9), np.zeros(9)), ai="ai", reference="manual")
    text, pictures = agreement_page(study, title="*a* | <b>")
    assert text.startswith("# \\*a\\* \\| \\<b\\>")
    assert set(pictures) == {"scores", "bland-altman", "confusion"}
    assert study.result.estimates["spearman"].value is None


@pytest.mark.slow
def test_many_rows_are_drawn_too() -> None:
    rng = np.random.default_rng(0)
    a = rng.exponential(200, 3000)
    study = compare_columns(frame(a * rng.uniform(0.8, 1.2, 3000), a), ai="ai", reference="manual")
    assert all(p.png.startswith(b"\x89PNG") for p in agreement_figures(study).values())
    assert group_names((0, 100, 300))[3].startswith("3")
