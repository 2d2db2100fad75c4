"""Write what a pull request to MHub would hold, and the model card of this tree (`make docs`).

Usage: ``python mhub/generate.py [--into FOLDER] [--repository URL --commit SHA] [--test-archive URL]``

Without options the files of this checkout are written, from what the package knows of itself:
``mhub/models/<name>/`` and ``meta.json``. The options are for whoever opens the pull request: a fork of
MHubAI/models, the public repository and commit that the image installs, and the archive on Zenodo that MHub
tests with. None of the three is known here, so none is guessed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import Template
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# Free in MHubAI/models, its branches and pull requests; `deepcac2` there is the model of the paper's authors.
NAME = "cac_agatston"
TITLES = {NAME: "Agatston score from chest CT", "deepcac2": "DeepCAC2: coronary calcium from chest CT"}
# Not the name of one of mhubio's own modules.
MODULE = "AgatstonRunner"
VENV = "/app/.venv-deepcac2"
# A series of LIDC-IDRI-0314 (The Cancer Imaging Archive, CC BY 3.0), which no training has seen.
SAMPLE = "1.3.6.1.4.1.14519.5.2.1.6279.6001.154677396354641350280013275227"
# UUID version 4, as MHub's schema asks; drawn once.
IDS = {NAME: "0c96ecd5-a4ee-4ee6-b328-c3aa9679d712", "deepcac2": "e96ef7dd-251a-4b60-bad0-2157c935b0b9"}
CODE_DATE = "2026-11-29"
# When a bundled set got its present tensors.
WEIGHTS_DATES = {"deepcac2-heart-4": "2026-11-21", "deepcac2-calcium-7": "2026-11-30"}
# Scans by what the description of a set says of its training; a simulated patient is drawn once.
TRAINED_ON = {
    "heart": {
        "240 simulated chest CTs": 240,
        "two labelled LIDC-IDRI chests": 2,
        "60 further simulated chests": 60,
    },
    "calcium": {
        "First 900 simulated chest CTs": 900,
        "200 with a stent": 200,
        "three real chest CTs": 3,
        "then 150 simulated chest CTs of version 2": 150,
        "20 with such things": 20,
        "four real chest CTs": 1,
        "150 simulated chest CTs of version 1": 150,
        "20 more with such things": 20,
    },
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the package knows of itself: version, bundled sets, rule, groups, and its own evaluation.

    Attributes:
        root: The checkout.
        repository, commit: Where the image installs the tool from; empty where not published.
        test_archive: MHub's test archive on Zenodo; empty where there is none.
    """

    root: Path = ROOT
    repository: str = ""
    commit: str = ""
    test_archive: str = ""

    @cached_property
    def version(self) -> str:
        from deepcac2 import __version__

        return __version__

    @cached_property
    def sets(self) -> dict[str, Any]:
        """The bundled sets of the default method by role, as the manifest describes them."""
        from deepcac2.weights.manifest import default_entry

        return {role: default_entry(role) for role in TRAINED_ON}

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """The numbers of ``docs/evaluation/simulated``.

        Raises:
            SystemExit: They were measured with other sets than the bundled ones.
        """
        from deepcac2.weights.description import set_hash

        path = self.root / "docs" / "evaluation" / "simulated" / "evaluation.json"
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for role, entry in self.sets.items():
            if content["weights"][role]["sha256"] != set_hash(entry.files):
                raise SystemExit(
                    f"{path} was measured with other {role} weights than {entry.name}; evaluate these first"
                )
        return content

    @cached_property
    def rule(self) -> str:
        """The rule of the workflow ``default``."""
        from deepcac2.pipeline import Workflow

        return str(Workflow.load("default").options("AGSCalculator").rule)

    @cached_property
    def groups(self) -> dict[int, tuple[str, str]]:
        """Label and limits of each risk group."""
        from deepcac2.scoring.result import RiskGroup

        limits = ("score 0", "above 0, up to 100", "above 100, up to 300", "above 300")
        return {int(g): (g.label, limit) for g, limit in zip(RiskGroup, limits, strict=True)}

    @cached_property
    def regions(self) -> dict[str, str]:
        """SegDB names of heart and calcium, as the facts of the chain name them."""
        from deepcac2.pipeline.facts import CALCIUM, HEART

        images = {"heart": HEART.image, "calcium": CALCIUM.image}
        return {name: image.query.partition("roi=")[2] for name, image in images.items() if image is not None}

    @cached_property
    def weights_date(self) -> str:
        missing = [entry.name for entry in self.sets.values() if entry.name not in WEIGHTS_DATES]
        if missing:
            raise SystemExit(f"mhub/generate.py: say in WEIGHTS_DATES since when {missing[0]} is bundled")
        return max(WEIGHTS_DATES[entry.name] for entry in self.sets.values())

    @cached_property
    def trained_on(self) -> int:
        """Different scans that the two networks have seen.

        Raises:
            SystemExit: The manifest says something else than `TRAINED_ON`.
        """
        for role, phrases in TRAINED_ON.items():
            for phrase in phrases:
                if phrase not in self.sets[role].training_data:
                    raise SystemExit(
                        f"mhub/generate.py: the training data of {self.sets[role].name} no longer say "
                        f"'{phrase}'; correct TRAINED_ON and the texts"
                    )
        return sum(n for phrases in TRAINED_ON.values() for n in phrases.values())

    def count(self, status: str) -> int:
        """Scans of the evaluation that ended so."""
        return sum(case["status"] == status for case in self.evaluation["cases"])

    def measured(self, name: str, digits: int = 3) -> str:
        """One statistic of the evaluation."""
        return f"{self.evaluation['statistics'][name]['value']:.{digits}f}".replace("-", "−")


def card(facts: Facts, name: str) -> dict[str, Any]:
    """The model card (``meta.json``) under a name, by MHub's schema; ``templates/`` has its texts."""
    from deepcac2.dicom.gates import MAX_THICKNESS_MM, MIN_THICKNESS_MM

    domain = facts.sets["calcium"].domain
    (thin, thick), (low, high) = domain["thickness_mm"], domain["kvp"]
    given = {
        "id": IDS[name],
        "name": name,
        "title": TITLES[name],
        "version": facts.version,
        "code_date": CODE_DATE,
        "weights_date": facts.weights_date,
        "licence": " and ".join(sorted({entry.licence for entry in facts.sets.values()})),
        "repository": facts.repository or "https://github.com/MHubAI/models",
        "heart": facts.sets["heart"].name,
        "calcium": facts.sets["calcium"].name,
        "scans": len(facts.evaluation["cases"]),
        "scored": facts.count("scored"),
        "rejected": facts.count("rejected"),
        "difference": facts.measured("mean_difference", 1),
        "too_thin": f"{MIN_THICKNESS_MM:g}",
        "too_thick": f"{MAX_THICKNESS_MM:g}",
        "thin": f"{thin:g}",
        "thick": f"{thick:g}",
        "low": f"{low:g}",
        "high": f"{high:g}",
    }
    made: dict[str, Any] = json.loads(filled("meta.json.in", given))
    segmentation, _, classification = made["summary"]["outputs"]
    segmentation["classes"] = list(facts.regions.values())
    classification["classes"] = [label for label, _ in facts.groups.values()]
    made["summary"]["data"]["training"]["vol_samples"] = facts.trained_on
    made["summary"]["data"]["evaluation"]["vol_samples"] = given["scans"]
    made["details"]["slicer"] = name == NAME
    groups = {f"{n} ({label})": limit for n, (label, limit) in facts.groups.items()}
    made["info"]["analyses"]["tables"] = [
        {"label": f"{given['scored']} simulated scans", "entries": results(facts)},
        {"label": "Risk groups", "entries": groups},
    ]
    return made


def results(facts: Facts) -> dict[str, str]:
    """The table of a card: at most ten rows, as the evaluation has them."""
    n = {name: facts.evaluation["statistics"][name]["n"] for name in ("counted_dice_mean", "spearman")}
    return {
        "Heart, Dice, mean": facts.measured("heart_dice_mean"),
        f"Counted calcium, Dice, mean ({n['counted_dice_mean']} with calcium)": facts.measured(
            "counted_dice_mean"
        ),
        "Score, Spearman": facts.measured("spearman"),
        "Score, ICC(2,1)": facts.measured("icc_2_1"),
        "Score, mean difference, predicted − true": facts.measured("mean_difference", 1),
        "Risk group, kappa, linear": facts.measured("kappa_linear"),
        "Score above 0, sensitivity": facts.measured("sensitivity_above_0"),
        "Score above 0, specificity": facts.measured("specificity_above_0"),
    }


def files(facts: Facts) -> dict[str, str]:
    """The model's folder for MHub: path inside ``models/<name>/`` to content."""
    classes = [
        f'@ClassOutput.Class({n}, "{label}", the="{limit}")' for n, (label, limit) in facts.groups.items()
    ]
    given = {
        "name": NAME,
        "module": MODULE,
        "venv": VENV,
        "version": facts.version,
        "rule": facts.rule,
        "sample": SAMPLE,
        "repository": facts.repository,
        "commit": facts.commit,
        "weights": ", ".join(entry.name for entry in facts.sets.values()),
        "classes": "\n".join(classes),
        "ids": ", ".join(f"{n} {label}" for n, (label, _) in facts.groups.items()),
        "test": f'test = "{facts.test_archive}"'
        if facts.test_archive
        else "# test = none yet: the archive with the samples of config/ and what this model made of them",
        **facts.regions,
    }
    paths = {
        "dockerfiles/Dockerfile": "Dockerfile.in",
        "config/default.yml": "default.yml.in",
        "config/slicer.yml": "slicer.yml.in",
        f"utils/{MODULE}.py": "Runner.py.in",
        "mhub.toml": "mhub.toml.in",
    }
    made = {path: filled(name, given) for path, name in paths.items()}
    return made | {"meta.json": text_of(card(facts, NAME))}


def filled(name: str, given: Mapping[str, object]) -> str:
    """A template with its ``$words`` replaced.

    Raises:
        KeyError: It has a word that is not given.
    """
    return Template((HERE / "templates" / name).read_text(encoding="utf-8")).substitute(given)


def text_of(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def write(facts: Facts, into: Path) -> None:
    """Write the folder ``models/<name>`` below `into`."""
    for path, content in files(facts).items():
        target = into / "models" / NAME / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write what a pull request to MHub would hold.")
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="a checkout of a fork of MHubAI/models")
    parser.add_argument("--repository", default="", metavar="URL", help="public repository of the tool")
    parser.add_argument("--commit", default="", metavar="SHA", help="the commit of it that was tested")
    parser.add_argument("--test-archive", default="", metavar="URL", help="MHub's test archive, on Zenodo")
    given = parser.parse_args(arguments)
    if bool(given.repository) != bool(given.commit):
        parser.error("--repository and --commit belong together")
    facts = Facts(repository=given.repository, commit=given.commit, test_archive=given.test_archive)
    write(facts, given.into or HERE)
    if given.into is None:
        (ROOT / "meta.json").write_text(text_of(card(facts, "deepcac2")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
