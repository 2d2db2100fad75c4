"""The layout of the repository, as docs/architecture.md fixes it: rooms, imports, packaging, errors, docs."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import deepcac2
from deepcac2 import errors

ROOT = Path(__file__).resolve().parents[1]

# How a method is trained lies in its folder, but these files are a place of their own, nearly at the end of
# the list: nothing that runs a method can import its training, and what all trainings share knows no method.
TRAIN = "models/*/train*.py"
# From the ground up: a room imports only rooms before it (the same table stands in docs/architecture.md).
ROOMS = [
    "errors",
    "system",
    "imaging",
    "dicom",
    "scoring",
    "stats",
    "weights",
    "pipeline",
    "models",
    "outputs",
    "utils",
    "config",
    "batch",
    "delivery",
    "simulation",
    "evaluation",
    "training",
    "reporting",
    "cohort",
    "release",
    "review",
    "dashboard",
    TRAIN,
    "cli",
]
LEARNING = {"torch", "monai", "nnunetv2"}
PICTURES = {"matplotlib", "PIL"}
MEDICINE = {"pydicom", "highdicom", "pynetdicom", "SimpleITK", "nibabel"}
# What a room never imports, wherever in a module that stands: packages, and rooms before it in the list.
NEVER = {
    "errors": {"numpy", "rich", "pathlib"} | LEARNING | MEDICINE | PICTURES,
    "system": {"scipy", "monai", "nnunetv2"} | MEDICINE | PICTURES,
    "imaging": {"pydicom", "highdicom", "monai", "nnunetv2"} | PICTURES,
    "dicom": LEARNING | PICTURES,
    "scoring": {"pathlib", "os", "dicom"} | LEARNING | MEDICINE | PICTURES,
    "stats": {"imaging", "dicom"} | LEARNING | MEDICINE | PICTURES,
    "weights": {"monai", "nnunetv2", "imaging", "dicom", "scoring", "stats"} | MEDICINE | PICTURES,
    "pipeline": {"monai", "nnunetv2", "stats"} | MEDICINE | PICTURES,
    "models": {"scoring", "stats"} | MEDICINE | PICTURES,
    "outputs": {"models", "stats", "weights"} | LEARNING | MEDICINE,
    "utils": {"torch", "monai", "nnunetv2", "stats"} | MEDICINE | PICTURES,
    "config": {"numpy"} | LEARNING | MEDICINE,
    "batch": {"monai", "nnunetv2", "numpy", "imaging", "scoring", "weights", "models"} | MEDICINE | PICTURES,
    "delivery": {"numpy", "imaging", "scoring", "stats", "weights", "models"} | LEARNING | PICTURES,
    "simulation": {"weights", "models", "pipeline", "batch", "delivery"} | LEARNING | PICTURES,
    "training": {"pydicom", "models", "utils", "batch", "delivery"},
    TRAIN: {"pydicom", "utils", "batch", "delivery", "cohort", "release", "review", "dashboard"} | PICTURES,
    "evaluation": {"monai", "nnunetv2", "utils", "delivery"} | MEDICINE | PICTURES,
    "reporting": {"models", "weights", "pipeline", "training", "dicom", "imaging"} | LEARNING | MEDICINE,
    "cohort": {"imaging", "weights", "models", "pipeline", "training"} | LEARNING | PICTURES,
    "release": {"weights", "models", "training", "evaluation"} | LEARNING | PICTURES,
    "review": {"weights", "models", "batch", "delivery", "training", "stats"}
    | LEARNING
    | MEDICINE
    | PICTURES,
    "dashboard": {"SimpleITK", "matplotlib", "weights", "models", "batch", "training"} | LEARNING,
    "cli": {"models", "monai", "nnunetv2", "scipy", "duckdb", "pyarrow"} | MEDICINE | PICTURES,
}
# Folders of the root that are no part of the package.
NOT_PACKAGED = {"tests", "docs", "benchmarks", "container", "mhub", "build", "dist", "demo", "runs"}
HEAVY = {
    "torch",
    "monai",
    "nnunetv2",
    "numpy",
    "scipy",
    "pydicom",
    "highdicom",
    "SimpleITK",
    "nibabel",
    "pyarrow",
    "matplotlib",
    "PIL",
}
# What a worker has no use for, and would wait for at its start, by whatever package it came.
SLOW = {"monai", "pandas", "matplotlib", "scipy.stats", "skimage", "nibabel", "SimpleITK", "duckdb"}
README = ROOT / "README.md"


def modules() -> list[Path]:
    """Every Python file of the package, relative to the root."""
    files = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    return sorted(
        path for path in files if path.parts[0] not in NOT_PACKAGED and not path.parts[0].startswith(".")
    )


def room(path: Path) -> str:
    """``dicom/series.py`` is in ``dicom``, ``errors.py`` in ``errors``, a method's training in `TRAIN`."""
    return TRAIN if path.match(TRAIN) else path.parts[0].removesuffix(".py")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))


def absolute_imports(path: Path) -> Iterator[str]:
    """Top-level names of what a module imports absolutely, wherever in the module that stands."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def imported_rooms(path: Path) -> Iterator[str]:
    """The room of everything that a module imports relatively, TYPE_CHECKING included."""
    package = path.parent.parts
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = node.level - 1
            assert above <= len(package), f"{path}:{node.lineno} leaves the package"
            base = package[: len(package) - above] + tuple((node.module or "").split("."))
            module = Path(*(part for part in base if part))
            yield from {room(module / f"{alias.name}.py") for alias in node.names}
            if module.parts:
                yield room(module.with_suffix(".py"))


@cache
def listed() -> dict[str, Any]:
    """``[tool.setuptools]`` of pyproject.toml."""
    if sys.version_info < (3, 11):
        pytest.skip("tomllib comes with Python 3.11")
    import tomllib

    settings: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return settings["tool"]["setuptools"]  # type: ignore[no-any-return]


@cache
def python(code: str) -> str:
    """What a fresh interpreter prints, started outside the checkout."""
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT.anchor
    )
    return done.stdout


# --- rooms and imports ------------------------------------------------------------------------------------


def test_the_root_holds_no_other_module() -> None:
    assert {path.name for path in modules() if len(path.parts) == 1} == {
        "__init__.py",
        "__main__.py",
        "errors.py",
    }


def test_every_folder_is_a_known_room() -> None:
    assert {room(path) for path in modules()} == {"__init__", "__main__", *ROOMS}
    assert NEVER.keys() == set(ROOMS)


@pytest.mark.parametrize("path", modules(), ids=str)
def test_imports(path: Path) -> None:
    """Relative inside the package, downwards only, and nothing that the room has no business with."""
    absolute = set(absolute_imports(path))
    assert "deepcac2" not in absolute, "the package imports itself relatively"
    never = NEVER.get(room(path), set())
    assert not absolute & never, f"{room(path)} has no business with them"
    if room(path) != "utils":
        assert "mhubio" not in absolute, "mhubio is imported only in utils/"
    if room(path) in ROOMS:
        below = {*ROOMS[: ROOMS.index(room(path)) + 1], "__version__"}
        imported = set(imported_rooms(path))
        assert imported <= below, f"{room(path)} may import only {sorted(below)}"
        assert not imported & never, f"{room(path)} has no business with them"


def test_a_method_knows_no_other_and_no_step_loads_a_network() -> None:
    folders = {path.parts[1] for path in modules() if path.parts[0] == "models" and len(path.parts) == 3}
    assert folders == {"heart", "calcium", "deepcac2", "rule_out", "slice_regression"}
    for path in modules():
        if path.parts[0] != "models" or len(path.parts) < 3:
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and node.level > 1:
                named = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                if node.level == 2 or "models" in named:
                    assert not folders & {*named}, f"{path}:{node.lineno}"
    loaded = python("import sys\nfrom deepcac2.pipeline.step import steps\nsteps()\nprint(*sys.modules)")
    assert not LEARNING & set(loaded.split())


def test_what_runs_a_method_loads_no_training_and_every_training_is_a_steps() -> None:
    """Nor anything else that is slow: the worker here has its networks loaded."""
    networks = [path for path in modules() if path.match("models/*/network.py")]
    names = ["deepcac2." + ".".join(path.with_suffix("").parts) for path in networks]
    loaded = python(
        "import sys\nfrom deepcac2.pipeline.step import steps\n"
        "from pathlib import Path\n"
        "from deepcac2.batch.worker import Role, Worker\n"
        "from deepcac2.pipeline import Workflow\n"
        "from deepcac2.pipeline.run import Job\n"
        f"import {', '.join(names)}\n"
        "job = Job(workflow=Workflow.load('default'), output=Path('nowhere'))\n"
        "assert Worker(job, Role(phases=('compute',), device='cpu', scratch=Path())).warm_up()\n"
        "print(*sys.modules)\nprint(*{step.train for step in steps().values()})"
    )
    known, trained = (line.split() for line in loaded.splitlines())
    assert set(names) <= set(known)
    assert not SLOW & set(known)
    assert not [name for name in known if name.startswith(("deepcac2.training", "deepcac2.evaluation"))]
    assert not [name for name in known if re.match(r"deepcac2\.models\.\w+\.train", name)]
    trainings = [path for path in modules() if path.match("models/*/train.py")]
    assert set(trained) == {"deepcac2." + ".".join(path.with_suffix("").parts) for path in trainings}


@pytest.mark.slow
def test_the_order_of_steps_does_not_depend_on_what_is_imported_first() -> None:
    found = "from deepcac2.pipeline.step import steps\nprint(*steps())"
    usual = python(found)
    for method in ("heart", "calcium", "rule_out", "slice_regression"):
        assert python(f"import deepcac2.models.{method}.step\n{found}") == usual, method


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = python("import sys, deepcac2; print(*{name.split('.')[0] for name in sys.modules})")
    assert not HEAVY & set(loaded.split())


def test_the_help_of_every_command_loads_nothing_heavy() -> None:
    """``--help`` builds the parser of every command, so this covers each module of ``cli`` at import."""
    loaded = python(
        "import sys, contextlib, io, deepcac2.cli.main as cli\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    cli.main(['--help'])\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    assert not HEAVY & set(loaded.split())


@pytest.mark.slow
def test_nothing_needs_torchvision() -> None:
    """timm brings it, but its usual build does not import beside a CPU build of torch."""
    python(
        "import sys\n"
        "sys.modules.update(torchvision=None, timm=None)\n"
        "import monai.networks.nets\n"
        "import nnunetv2.inference.predict_from_raw_data, nnunetv2.run.run_training"
    )


def test_public_names_resolve() -> None:
    assert sorted(deepcac2.__all__) == sorted({*deepcac2.__all__}), "a name stands twice in __all__"
    assert {*deepcac2._EXPORTS, "__version__"} == {*deepcac2.__all__}
    for name in deepcac2.__all__:
        assert getattr(deepcac2, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = deepcac2.nothing
    assert dir(deepcac2) == sorted(deepcac2.__all__)


# --- packaging --------------------------------------------------------------------------------------------


def test_every_package_is_listed_and_there() -> None:
    on_disk = {".".join(("deepcac2", *path.parent.parts)) for path in modules()}
    assert on_disk == set(listed()["packages"])
    for package in on_disk:
        folder = ROOT.joinpath(*package.split(".")[1:])
        assert (folder / "__init__.py").is_file(), f"{package} has no __init__.py"


def test_package_data_is_there() -> None:
    for package, patterns in listed()["package-data"].items():
        folder = ROOT.joinpath(*package.split(".")[1:])
        assert any(any(folder.glob(pattern)) for pattern in patterns), f"{package} has none of {patterns}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in a wheel built from a copy of the checkout."""
    copy = tmp_path_factory.mktemp("wheel") / "some-other-name"
    skipped = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "demo", "runs")
    shutil.copytree(ROOT, copy, ignore=skipped)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", str(copy)],
        check=True,
        capture_output=True,
        cwd=copy.parent,
    )
    (built,) = copy.parent.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return set(archive.namelist())


@pytest.mark.skipif(not README.is_file(), reason="pyproject.toml names a README.md, which is not here")
class TestWheel:
    def test_holds_the_package_and_nothing_else(self, wheel: set[str]) -> None:
        packaged = {name for name in wheel if ".dist-info/" not in name}
        assert all(name.startswith("deepcac2/") for name in packaged)
        assert {name for name in packaged if name.endswith(".py")} == {
            f"deepcac2/{path.as_posix()}" for path in modules()
        }

    def test_holds_workflows_weights_and_marker(self, wheel: set[str]) -> None:
        assert "deepcac2/py.typed" in wheel
        wanted = [path for folder in ("config", "weights") for path in (ROOT / folder).rglob("*")]
        wanted = [path for path in wanted if path.suffix in {".yml", ".json", ".safetensors"}]
        assert {f"deepcac2/{path.relative_to(ROOT).as_posix()}" for path in wanted} <= wheel

    def test_holds_the_licence_and_the_command(self, wheel: set[str]) -> None:
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)
        assert any(name.endswith(".dist-info/entry_points.txt") for name in wheel)


def test_constraints_cover_every_dependency() -> None:
    """Every direct dependency is pinned to one exact version."""
    listed()  # skips where tomllib is absent
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0] for line in lines if not line.startswith("#")}
    names = {re.sub(r"[-_.]+", "-", re.split(r"[><=!~ \[;]", line)[0]).lower() for line in asked}
    assert names <= pinned
    assert all(
        re.fullmatch(r"[a-z0-9-]+==[^ +]+( ; .+)?", line) for line in lines if not line.startswith("#")
    )


# --- errors -----------------------------------------------------------------------------------------------


def error_classes() -> list[type[errors.DeepCACError]]:
    found = [value for _, value in inspect.getmembers(errors, inspect.isclass)]
    return [value for value in found if issubclass(value, errors.DeepCACError)]


def test_errors_are_drawn_as_they_are() -> None:
    """The tree in the docstring of errors.py: every class, its parent, its code and its exit code."""
    drawn: dict[str, tuple[str, str, int]] = {}
    path: list[str] = []
    for match in re.finditer(
        r"^    ([ │├└─]*)([A-Z]\w+) +(\(.*?\)|[a-z-]+|code) +(\d+|exit)\b", errors.__doc__ or "", re.MULTILINE
    ):
        branch, name, code, exit_code = match.groups()
        path[len(branch) // 4 :] = [name]
        if exit_code != "exit":
            drawn[name] = (path[-2], code, int(exit_code))
    classes = [found for found in error_classes() if found is not errors.DeepCACError]
    assert drawn.keys() == {found.__name__ for found in classes}
    for found in classes:
        parent, code, exit_code = drawn[found.__name__]
        assert (parent, exit_code) == (found.__base__.__name__ if found.__base__ else "", found.exit_code)
        assert code == found.code or code.startswith("(")


def test_codes_and_exit_codes_are_unique() -> None:
    """Each class that sets its own; 2 is argparse's and 130 an interrupt."""
    own = [vars(found) for found in error_classes()]
    for key in ("code", "exit_code"):
        values = [attributes[key] for attributes in own if key in attributes]
        assert len(values) == len(set(values)), f"a {key} is used twice"
        assert not {2, 130} & set(values)


# --- documentation ----------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse words its help differently elsewhere")
def test_generated_pages_are_up_to_date(tmp_path: Path) -> None:
    """Every command, option and error is documented: the pages are what `make docs` writes."""
    subprocess.run([sys.executable, str(ROOT / "docs" / "generate.py"), str(tmp_path)], check=True)
    pages = sorted(page.name for page in tmp_path.iterdir())
    assert pages == ["cli.md", "errors.md", "modules.md"]
    for page in pages:
        text = (tmp_path / page).read_text(encoding="utf-8")
        assert (ROOT / "docs" / page).read_text(encoding="utf-8") == text, f"{page} is old; run `make docs`"


def test_links_in_the_documentation_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if "://" not in target and not target.startswith("mailto:"):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


def test_decision_records_have_their_four_parts() -> None:
    records = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(record.name[:4]) for record in records] == list(range(1, len(records) + 1))
    for record in records:
        headings = re.findall(r"^## (\w+)", record.read_text(encoding="utf-8"), re.MULTILINE)
        assert headings == ["Status", "Motivation", "Decision", "Alternatives"], record.name


# --- the image --------------------------------------------------------------------------------------------


@pytest.mark.skipif(Path("/app/data/input_data").exists(), reason="scans are mounted here")
def test_the_container_says_where_scans_are_mounted() -> None:
    entry = ["sh", str(ROOT / "container" / "entrypoint")]
    done = subprocess.run(entry, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 11
    assert "-v /path/to/scans:/app/data/input_data:ro" in done.stderr


def test_the_image_takes_only_what_the_package_is_made_of() -> None:
    """Whatever lies in the checkout beside it, patients' folders too, stays out: `.dockerignore` is a list of
    what goes in."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    first, *rules = [line for line in lines if line and not line.startswith("#")]
    assert first == "*"
    taken = {rule[1:] for rule in rules if rule.startswith("!")}
    assert all(rule.startswith("!") or rule.startswith("**/") for rule in rules)
    assert not any(character in name for name in taken for character in "*?[/")
    packages = {p.partition(".")[2].split(".")[0] for p in listed()["packages"]}
    files = {path.name for path in ROOT.iterdir() if path.is_file()}
    assert taken - files == (packages - {""}) | {"container"}
    assert {"__init__.py", "__main__.py", "errors.py", "LICENSE", "README.md"} <= taken <= taken | files
    copied = re.findall(r"^COPY (?:--\S+ )*(\S+) ", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.M)
    assert "." in copied
    assert set(copied) - {"."} <= taken


def test_no_layer_of_the_image_changes_modes_of_another() -> None:
    """Changing a file's mode in a later layer stores the file a second time; `COPY --chmod` does not."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert not re.search(r"^RUN.*(\\\n.*)*\bch(mod|own)\b", text, re.M)
    assert re.search(r"^COPY --chmod=755 \. ", text, re.M)
