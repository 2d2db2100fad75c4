"""What a pull request to MHub would hold: as generated, as MHub's checker wants it, true to the evaluation.

The rules are those of ``.github/scripts/mhub_check.py`` in MHubAI/models, of its schemas and of MHub's
documentation, written down again. Where the environment variable ``DEEPCAC2_MHUB_MODELS`` names a checkout of
MHubAI/models, its own checker runs as well.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
# What only whoever opens the pull request knows.
PUBLISHED = [
    "--repository=https://github.com/someone/deepcac2",
    "--commit=0123456789abcdef0123456789abcdef01234567",
    "--test-archive=https://zenodo.org/records/1/files/test.zip",
]
# The authors' model there has this name, this archive.
THEIRS = ("deepcac2", "19921180")


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    return load(ROOT / "mhub" / "generate.py", "mhub_generate")


@pytest.fixture
def published(generate: ModuleType, tmp_path: Path) -> Path:
    """A fork of MHubAI/models with our model in it, all of it known."""
    assert generate.main([f"--into={tmp_path}", *PUBLISHED]) == 0
    return tmp_path / "models" / str(generate.NAME)


def findings(folder: Path) -> list[str]:
    """What MHub's checker would say about a model's folder."""
    if sys.version_info < (3, 11):
        pytest.skip("tomllib comes with Python 3.11")
    import tomllib

    name, said = folder.name, []
    for needed in ("dockerfiles/Dockerfile", "config/default.yml", "utils", "meta.json", "mhub.toml"):
        if not (folder / needed).exists():
            said.append(f"{needed} is missing")
    if json.loads((folder / "meta.json").read_text(encoding="utf-8"))["name"] != name:
        said.append("meta.json: another name than the folder's")
    lines = (folder / "dockerfiles" / "Dockerfile").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line.strip()]
    if lines[0] != "FROM mhubai/base:latest":
        said.append("Dockerfile: the first line is not that of the base image")
    for line in lines[1:]:
        if line.startswith(("FROM", "WORKDIR", "ADD", "COPY")):
            said.append(f"Dockerfile: {line.split()[0]}")
    for line in (
        "ARG MHUB_MODELS_REPO",
        f"RUN buildutils/import_mhub_model.sh {name} ${{MHUB_MODELS_REPO}}",
    ):
        if line not in lines:
            said.append(f"Dockerfile: without {line}")
    if lines[-2:] != ['ENTRYPOINT ["mhub.run"]', 'CMD ["--workflow", "default"]']:
        said.append("Dockerfile: other last lines")
    about = tomllib.loads((folder / "mhub.toml").read_text(encoding="utf-8"))
    archive = about.get("model", {}).get("deployment", {}).get("test", "")
    if not re.fullmatch(r"https://zenodo\.org/.+", archive):
        said.append("mhub.toml: no test archive on Zenodo")
    return said


# --- as generated -----------------------------------------------------------------------------------------


def test_the_committed_files_are_what_the_generator_writes(generate: ModuleType) -> None:
    facts = generate.Facts()
    folder = ROOT / "mhub" / "models" / generate.NAME
    made = generate.files(facts)
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {path for path in there if "__pycache__" not in path} == made.keys()
    for path, content in made.items():
        assert (folder / path).read_text(encoding="utf-8") == content, f"{path}: run `make docs`"
    card = generate.text_of(generate.card(facts, "deepcac2"))
    assert (ROOT / "meta.json").read_text(encoding="utf-8") == card, "meta.json: run `make docs`"


def test_what_is_not_published_is_not_claimed(generate: ModuleType) -> None:
    """No archive but one of ours; none is there yet, and that is the only thing the checker would say."""
    folder = ROOT / "mhub" / "models" / generate.NAME
    assert generate.NAME not in THEIRS
    for text in (folder / "mhub.toml", ROOT / "mhub.toml"):
        assert "zenodo.org" not in text.read_text(encoding="utf-8")
    assert findings(folder) == ["mhub.toml: no test archive on Zenodo"]
    assert not (folder / "dockerfiles" / "Dockerfile").read_text().count("=https://github")


# --- MHub's checks ----------------------------------------------------------------------------------------


def test_nothing_is_left_to_say_when_all_is_published(published: Path) -> None:
    assert findings(published) == []
    docker = (published / "dockerfiles" / "Dockerfile").read_text(encoding="utf-8")
    assert "ARG DEEPCAC2_REPO=https://github.com/someone/deepcac2\n" in docker
    assert "ARG DEEPCAC2_COMMIT=0123456789abcdef0123456789abcdef01234567\n" in docker
    with pytest.raises(SystemExit):
        load(ROOT / "mhub" / "generate.py", "mhub_generate").main(["--repository=https://x.example/y"])


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("dockerfiles/Dockerfile", ("FROM mhubai/base:latest", "FROM ubuntu"), "first line"),
        ("dockerfiles/Dockerfile", ("ARG MHUB_MODELS_REPO", "COPY . /app\nARG MHUB_MODELS_REPO"), "COPY"),
        ("dockerfiles/Dockerfile", ("import_mhub_model.sh cac", "import_mhub_model.sh x"), "without RUN"),
        ("dockerfiles/Dockerfile", ('CMD ["--workflow"', 'CMD ["--config"'), "last lines"),
        ("meta.json", ('"name": "cac_agatston"', '"name": "deepcac2"'), "another name"),
        ("mhub.toml", ("https://zenodo.org", "https://x.org"), "no test archive"),
    ],
)
def test_the_checks_find_what_they_are_for(
    published: Path, file: str, change: tuple[str, str], said: str
) -> None:
    text = (published / file).read_text(encoding="utf-8")
    assert change[0] in text
    (published / file).write_text(text.replace(*change), encoding="utf-8")
    (found,) = findings(published)
    assert said in found


CHECKER = """
import json, sys
sys.path.insert(0, ".github/scripts")
import utils
name = sys.argv[1]
utils.validateModelFolder(base="models", model_name=name)
utils.validateModelMetaJson(model_meta_json_file=f"models/{name}/meta.json")
utils.validateModelMetaJson_modelName(model_meta_json_file=f"models/{name}/meta.json", model_name=name)
utils.validateDockerfile(base="models", model_name=name)
utils.validateMHubToml(base="models", model_name=name)
said = utils.compliancy_check
print(json.dumps([m.text for m in (*said.errors, *said.warnings, *said.notes)]))
"""


def test_mhubs_own_checker_agrees(published: Path, generate: ModuleType) -> None:
    """All of it but the look into the archive, which it downloads."""
    checkout = os.environ.get("DEEPCAC2_MHUB_MODELS")
    if not checkout:
        pytest.skip("needs a checkout of MHubAI/models in DEEPCAC2_MHUB_MODELS")
    for needed in ("colorama", "jsonschema", "requests", "toml"):
        pytest.importorskip(needed, reason=f"MHub's checker needs {needed}")
    assert not (Path(checkout) / "models" / generate.NAME).exists(), "the name is taken by now"
    fork = published.parents[1]
    for part in (".github", "base"):
        (fork / part).symlink_to(Path(checkout).resolve() / part)

    def said() -> list[str]:
        command = [sys.executable, "-c", CHECKER, published.name]
        done = subprocess.run(command, cwd=fork, capture_output=True, text=True, check=True)
        texts: list[str] = json.loads(done.stdout.splitlines()[-1])
        return texts

    assert said() == []
    (published / "mhub.toml").write_text("[model.deployment]\n")
    assert len(said()) == 1


@pytest.mark.parametrize("workflow", ["default", "slicer"])
def test_a_workflow_says_what_goes_in_and_what_comes_out(published: Path, workflow: str) -> None:
    content = yaml.safe_load((published / "config" / f"{workflow}.yml").read_text(encoding="utf-8"))
    assert {"data_base_dir", "version", "description"} == set(content["general"])
    assert content["modules"].keys() <= {*content["execute"]}
    assert {p.stem for p in (published / "config").glob("*.yml")} == {"default", "slicer"}
    sample = content["sample"]
    assert all(isinstance(text, str) and text for side in sample.values() for text in side.values())
    targets = [target.partition("-->")[2] for target in content["modules"]["DataOrganizer"]["targets"]]
    if workflow == "default":
        assert f"[i:sid]/{published.name}.seg.dcm" in targets
        assert sample["input"].keys() == {"dicom/"}
        assert {re.sub(r"^[0-9.]+/", "[i:sid]/", path) for path in sample["output"]} == {*targets}
    else:
        assert sample["input"].keys() == {"image.nrrd"}
        names = {"heart.nii.gz", "calcium.nii.gz"}
        assert sample["output"].keys() == {t for t in targets if "[" not in t} | names


def test_modules_are_as_mhub_wants_them(published: Path, generate: ModuleType) -> None:
    """One class a file, named as the file and as no module of MHub's; what is heavy is imported in `task`."""
    (path,) = (published / "utils").iterdir()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = [
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Module" for base in node.bases)
    ]
    assert modules == [path.stem] == [generate.MODULE]
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node).split()[1] for node in imports] == ["mhubio.core"]
    mhubio = pytest.importorskip("mhubio", reason="needs mhubio")
    theirs = {p.stem for p in Path(mhubio.__file__).parent.rglob("*.py")}
    assert path.stem not in theirs
    for workflow in (published / "config").iterdir():
        steps = yaml.safe_load(workflow.read_text(encoding="utf-8"))["execute"]
        assert set(steps) - theirs == {path.stem}


def test_the_segments_are_known_to_mhub(published: Path) -> None:
    segdb = pytest.importorskip("segdb", reason="needs segdb")
    table = (Path(segdb.__file__).parent / "data" / "segmentations.csv").read_text(encoding="utf-8")
    known = {line.split(",")[0] for line in table.splitlines()}
    text = next((published / "utils").iterdir()).read_text(encoding="utf-8")
    regions = re.findall(r":roi=([A-Z_+]+)", text)
    assert len(regions) == 2
    assert {part for region in regions for part in region.split("+")} <= known


# --- true to the evaluation -------------------------------------------------------------------------------


def statistics() -> dict[str, Any]:
    """``report.md`` of the evaluation, row by row: what is read by people, not what the generator reads."""
    text = (ROOT / "docs" / "evaluation" / "simulated" / "report.md").read_text(encoding="utf-8")
    rows = (line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| "))
    return {row[0].strip(): row[1].strip() for row in rows if len(row) > 1}


@pytest.mark.parametrize("path", ["meta.json", "mhub/models/cac_agatston/meta.json"])
def test_the_cards_numbers_are_those_of_the_evaluation(path: str) -> None:
    card = json.loads((ROOT / path).read_text(encoding="utf-8"))
    report = statistics()
    entries = card["info"]["analyses"]["tables"][0]["entries"]
    assert entries["Heart, Dice, mean"] == report["Dice, mean"]
    (dice,) = (value for key, value in entries.items() if key.startswith("Counted calcium"))
    assert dice == report["Dice of the counted voxels, mean"]
    assert entries["Score, Spearman"] == report["Spearman's ρ"]
    assert entries["Score, ICC(2,1)"] == report["ICC(2,1)"]
    assert entries["Score, mean difference, predicted − true"] == report["mean difference, predicted − true"]
    assert entries["Risk group, kappa, linear"] == report["κ, linear weights"]
    assert entries["Score above 0, sensitivity"] == report["score > 0: sensitivity"]
    assert entries["Score above 0, specificity"] == report["score > 0: specificity"]
    assert report["scans with a truth"] == "60 of 60 patients: 50 scored, 10 rejected"
    assert card["summary"]["data"]["evaluation"]["vol_samples"] == 60
    text = card["info"]["analyses"]["text"]
    for role in ("heart", "calcium"):
        assert report[f"{role} weights"].split()[0] in text
    assert "on 60 simulated scans, of which 50 were scored and 10 rejected" in text


def test_the_cards_weights_are_the_bundled_ones() -> None:
    """By the description that lies beside the tensors, and by what the evaluation was made with."""
    card = json.loads((ROOT / "meta.json").read_text(encoding="utf-8"))
    manifest = json.loads((ROOT / "weights" / "manifest.json").read_text(encoding="utf-8"))
    measured = {}
    for role in ("heart", "calcium"):
        described = json.loads((ROOT / "weights" / role / "weights.json").read_text(encoding="utf-8"))
        (entry,) = (s for s in manifest["sets"] if s["role"] == role and s.get("default"))
        assert described["name"] == entry["name"]
        assert f"network, {described['name']}," in card["info"]["training"]["text"]
        measured |= entry["measured"]
    report = statistics()
    scans = (
        "60 unseen simulated patients (30 of each version, seeds 9101 to 9130 and 9201 to 9230), "
        "10 rejected (8 for metal)"
    )
    assert f"{measured[f'{scans}, score: Spearman']:.3f}" == report["Spearman's ρ"]
    assert f"{measured['ICC(2,1)']:.3f}" == report["ICC(2,1)"]
    assert f"{measured['risk group: kappa, linear']:.3f}" == report["κ, linear weights"]
    assert (
        f"{measured['score > 0: sensitivity (42 patients with calcium)']:.3f}"
        == report["score > 0: sensitivity"]
    )
