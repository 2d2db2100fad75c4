"""Workflows: strict reading, and words that help with a typo."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from deepcac2.dicom import Series
from deepcac2.errors import WorkflowError
from deepcac2.outputs.organizer import places
from deepcac2.pipeline import Workflow
from deepcac2.pipeline.step import steps

DEFAULT = (Path(__file__).parents[2] / "config" / "default.yml").read_text()


def test_default_runs_the_modules_of_the_design() -> None:
    workflow = Workflow.load("default")
    assert [s.module for s in workflow.steps] == [
        "DicomImporter",
        "NiftiConverter",
        "HeartRunner",
        "DeepCACRunner",
        "AGSCalculator",
        "DSegConverter",
        "ReportExporter",
        "DataOrganizer",
    ]
    assert workflow.options("AGSCalculator").rule == "agatston"
    assert Workflow.parse(DEFAULT, name="default").fingerprint() == workflow.fingerprint()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("- AGSCalculator", "- AGSCalculater", "Perhaps you meant 'AGSCalculator'"),
        ("  AGSCalculator:", "  AgsCalculator:", "Perhaps you meant 'AGSCalculator'"),
        ("    rule: agatston", "    rul: agatston", "unknown option 'rul'. Perhaps you meant 'rule'"),
        ("    rule: agatston", "    rule: 3", "'rule' must be a valid string, not 3"),
        ("peak_probability: null", "peak_probability: 1.5", "at least 0.5 and below 1, not 1.5"),
        ("heart_margin_mm: null", "heart_margin_mm: -4.0", "heart_margin_mm is 0 or more"),
        ("execute:", "exceute:", "needs a list 'execute'"),
        ("modules:", "module:", "Perhaps you meant 'modules'"),
        ("dicomseg:mod=seg-->", "dicomsg:mod=seg-->", "Perhaps you meant 'dicomseg:mod=seg'"),
        ("[i:PatientID]", "[i:PatientId]", "Perhaps you meant 'i:PatientID'"),
        ("[i:PatientID]/", "../", "must stay inside"),
        ("- HeartRunner\n", "", "needs HeartRunner before it"),
        ("- NiftiConverter\n", "", "lacks NiftiConverter"),
        (
            "- HeartRunner\n- DeepCACRunner",
            "- DeepCACRunner\n- HeartRunner",
            "HeartRunner comes before DeepCACRunner",
        ),
        ("- HeartRunner\n", "- HeartRunner\n- HeartRunner\n", "has HeartRunner twice"),
        ("- HeartRunner\n- DeepCACRunner", "- HeartRunner\n- DSegConverter\n- DeepCACRunner", "comes before"),
        ("general:", "general: [", "not valid YAML"),
    ],
)
def test_mistakes_are_one_line_with_help(old: str, new: str, message: str) -> None:
    assert old in DEFAULT
    with pytest.raises(WorkflowError) as caught:
        Workflow.parse(DEFAULT.replace(old, new, 1), name="mine")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_name_and_missing_file() -> None:
    with pytest.raises(WorkflowError, match="Perhaps you meant 'default'"):
        Workflow.load("defualt")
    with pytest.raises(WorkflowError, match=r"mine\.yml cannot be read"):
        Workflow.load("/nowhere/mine.yml")


def test_options_beside_the_module_name_count_for_that_step() -> None:
    content = yaml.safe_load(DEFAULT)
    content["execute"][4] = {"module": "AGSCalculator", "rule": "ai-cac"}
    assert Workflow.parse(yaml.safe_dump(content), name="w").options("AGSCalculator").rule == "ai-cac"


def test_the_fingerprint_follows_the_options() -> None:
    workflow = Workflow.load("default")
    other = workflow.with_options("AGSCalculator", rule="ai-cac")
    assert other.fingerprint() != workflow.fingerprint()
    assert workflow.options("AGSCalculator").rule == "agatston"


@pytest.mark.parametrize("patient", ["../../x", "results.csv", "Logs", "", "a/b", "CON", ".hidden", "ä ö"])
def test_no_patient_id_leaves_its_folder_or_takes_a_name_of_the_run(patient: str) -> None:
    series = Series(series_uid="1.2.3", patient_id=patient)
    paths = places(Workflow.load("default"), series)
    names = {p.name for p in paths.values()}
    assert {"cac.seg.dcm", "cac.sr.dcm", "DeepCAC.report.json", "preview.png", "heart.nii.gz"} <= names
    folders = {p.parent for p in paths.values()}
    assert len(folders) == 1
    first, second = folders.pop().parts
    assert second == "1.2.3"
    assert first not in ("", ".", "..", "results.csv", "logs", "Logs")
    assert not first.startswith(".")


def test_escaped_patients_stay_apart() -> None:
    ids = ["logs", "%6Cogs", "a/b", "a%2Fb", "a_b", "A_b"]
    workflow = Workflow.load("default")
    folders = {str(places(workflow, Series(series_uid="1", patient_id=i))["seg"]) for i in ids}
    assert len(folders) == len(ids)


def test_several_workflows_run_each_module_once() -> None:
    both = Workflow.combine([Workflow.load("default"), Workflow.load("direct"), Workflow.load("screening")])
    names = [step.module for step in both.steps]
    assert names == [module for module in steps() if module in names]
    # the direct score is there, though metal among the calcium stops the case
    assert names == [
        *("DicomImporter", "NiftiConverter", "HeartRunner", "ScreeningRunner", "DirectRunner"),
        *("DeepCACRunner", "AGSCalculator", "DSegConverter", "ReportExporter", "DataOrganizer"),
    ]
    labels = [entry["label"] for entry in both.options("ReportExporter").includes]
    assert labels[:2] == ["Predicted Agatston Score", "Predicted Risk Group"]
    assert labels.count("SeriesInstanceUID") == 1
    assert {"Direct Agatston Score", "Coronary Calcium Possible"} <= set(labels)
    assert both.options("DSegConverter").converted_file_name == "cac.seg.dcm"
    assert both.options("DataOrganizer") == Workflow.load("default").options("DataOrganizer")
    alone = Workflow.load("direct")
    assert Workflow.combine([alone]) is alone
    # The SEG of the calcium network, whichever comes first.
    turned = Workflow.combine([Workflow.load("screening"), Workflow.load("default")])
    assert turned.options("DSegConverter").converted_file_name == "cac.seg.dcm"


@pytest.mark.parametrize("name", sorted(p.stem for p in (Path(__file__).parents[2] / "config").glob("*.yml")))
def test_every_bundled_workflow_lets_the_gates_look_at_the_heart(name: str) -> None:
    """Direct scoring without gave a face CT 100 points."""
    order = [step.module for step in Workflow.load(name).steps]
    assert any(module.startswith("HeartRunner") for module in order), name


def test_workflows_that_want_different_things_are_not_combined() -> None:
    with pytest.raises(WorkflowError, match="screening and cascade want different things of ScreeningRunner"):
        Workflow.combine([Workflow.load("screening"), Workflow.load("cascade")])


@pytest.mark.parametrize(
    ("workflow", "change", "complaint"),
    [
        ("screening", ("localise: heart", "localise: liver"), "localise is one of heart, chest-wall"),
        ("screening", ("threshold: null", "threshold: 1.5"), "threshold is between 0 and 1"),
        ("screening", ("- HeartRunner\n", ""), "ScreeningRunner needs HeartRunner"),
        ("direct", ("- HeartRunner\n", ""), "DirectRunner needs HeartRunner"),
        ("screening", ("- ScreeningRunner\n", ""), "DSegConverter needs ScreeningRunner or DeepCACRunner"),
    ],
)
def test_what_the_other_methods_need(workflow: str, change: tuple[str, str], complaint: str) -> None:
    text = (Path(__file__).parents[2] / "config" / f"{workflow}.yml").read_text()
    assert change[0] in text
    with pytest.raises(WorkflowError, match=complaint):
        Workflow.parse(text.replace(*change), name=workflow)
