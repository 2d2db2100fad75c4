"""Releases as the authors' own workflows leave them: NRRD masks, series without patients, rounded scores."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import SimpleITK as sitk

from deepcac2.batch.run import Means, run_folder
from deepcac2.cli.main import main
from deepcac2.dicom import Series, discover, read_series, write_segmentation
from deepcac2.imaging import Volume
from deepcac2.pipeline import Workflow
from deepcac2.release.build import Release, build_release
from deepcac2.release.compare import compare
from deepcac2.release.verify import Verification, verify
from deepcac2.simulation import default_geometry, simulate_patient
from deepcac2.simulation.dicom import write_patient

REPORT = "DeepCAC.report.json"


@dataclass
class Chest:
    """A CT and a random mask in it."""

    series: Series
    volume: Volume
    mask: np.ndarray

    @property
    def place(self) -> str:
        return self.series.series_uid


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A piece from the middle of four simulated patients."""
    folder = tmp_path_factory.mktemp("ct")
    for seed in (3, 4, 5, 7):
        middle = slice(54, 66), slice(224, 288), slice(224, 288)
        geometry = default_geometry(seed, size=512, slices=120).part(middle)
        write_patient(simulate_patient(seed, geometry=geometry), folder)
    return folder


@pytest.fixture(scope="module")
def chests(ct: Path) -> list[Chest]:
    """Each with a random mask: bright pixels and what is beside them, and some that are not bright at all."""
    found = []
    for seed, series in enumerate(s for s in discover(ct).series if s.modality == "CT"):
        volume = read_series(series).volume
        rng = np.random.default_rng(seed)
        mask = np.zeros(volume.hu.shape, bool)
        places = [*np.argwhere(volume.hu > 250), *np.argwhere(volume.hu > -500)]
        for z, y, x in (places[i] for i in (*rng.integers(0, 40, 8), *rng.integers(0, len(places), 12))):
            mask[z, y : y + rng.integers(1, 4), x : x + rng.integers(1, 4)] = True
        found.append(Chest(series, volume, mask))
    return found


def write_mask(path: Path, chest: Chest, mask: np.ndarray, *, turned: bool = False) -> None:
    """As SimpleITK writes it; `turned`: with axes the other way round, as a CT on its way through NIfTI."""
    geometry = chest.volume.geometry
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(geometry.spacing[::-1])
    image.SetOrigin(geometry.origin)
    image.SetDirection(np.array(geometry.axes[::-1]).T.flatten().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(
        sitk.Flip(image, (True, True, False)) if turned else image, str(path), useCompression=True
    )


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4))


Write = Callable[..., Path]


@pytest.fixture(params=["deepcac2", "deepcac2-mapped"])
def rule(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def write(chests: list[Chest], published: ModuleType) -> Write:
    """Writes the release of the four, with scores by the oracle."""

    def release(folder: Path, rule: str = "deepcac2", both: bool = False) -> Path:
        reports = []
        for i, chest in enumerate(chests):
            hu, spacing = chest.volume.hu, chest.volume.geometry.spacing
            mapped = published.slow_map(hu, chest.mask)
            nrrd = folder / chest.place / ("nrrd" if i else "")  # their two places
            write_mask(nrrd / "cac.seg.nrrd", chest, chest.mask, turned=bool(i % 2))
            if both:
                write_mask(nrrd / "mcac.seg.nrrd", chest, mapped)
            score = published.slow_score(hu, mapped if rule == "deepcac2-mapped" else chest.mask, spacing)
            report = {
                "SeriesInstanceUID": chest.series.series_uid,
                "PatientID": chest.series.patient_id,
                "Predicted Agatston Score": score,
                "Predicted Risk Group": published.group_of(score),
            }
            if both:
                score = published.slow_score(hu, mapped, spacing)
                report["Mapped Predicted Agatston Score"] = score
                report["Mapped Predicted Risk Group"] = published.group_of(score)
            reports.append(report)
            write_json(folder / chest.place / REPORT, report)
        write_json(folder / REPORT, reports)
        return folder

    return release


def verified(folder: Path, ct: Path | None = None) -> Verification:
    with Release(folder) as release:
        return verify(release, ct=ct)


def said(found: Verification) -> list[tuple[str, str]]:
    return [(p.code, p.message) for p in found.problems]


def test_the_rule_is_named_and_every_score_is_the_oracles(
    write: Write, ct: Path, chests: list[Chest], published: ModuleType, tmp_path: Path, rule: str
) -> None:
    folder = write(tmp_path / "r", rule, both=True)
    found = verified(folder, ct)
    assert said(found) == []
    assert (found.series, found.with_ct, found.rule) == (4, 4, rule)
    assert found.rules[0].same == 4
    for chest in chests:
        hu, spacing = chest.volume.hu, chest.volume.geometry.spacing
        again = found.scores[chest.place]
        assert again["deepcac2"] == published.slow_score(hu, chest.mask, spacing)
        mapped = published.slow_map(hu, chest.mask)
        assert again["deepcac2-mapped"] == published.slow_score(hu, mapped, spacing)
    assert len({f"{found.scores[c.place]}" for c in chests}) == 4


def test_it_may_be_packed(write: Write, ct: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "r")
    packed = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", folder))
    assert main(["release", "verify", str(packed), "--ct", str(ct)]) == 0
    printed = capsys.readouterr().out
    assert "rule: deepcac2\n" in printed
    assert "4 series; 0 checksums compared; 4 with their CT" in printed


@pytest.fixture(scope="module")
def runs(simulated: Path, published: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same scan and small random networks by both workflows of the published method."""
    found = {}
    for name in ("deepcac2", "deepcac2-authors"):
        folder = tmp_path_factory.mktemp(name)
        workflow = Workflow.load(published.workflow_file(folder, name))
        run_folder(simulated, folder / "out", workflow=workflow, means=Means())
        found[name] = folder / "out"
    return found


@pytest.mark.slow
def test_what_the_workflows_leave_is_verified_and_the_rule_named(
    runs: dict[str, Path], simulated: Path, tmp_path: Path
) -> None:
    build_release(runs["deepcac2"], tmp_path / "a.zip")
    for path in (tmp_path / "a.zip", *runs.values()):
        with Release(path) as release:
            found = verify(release, ct=simulated)
        assert said(found) == []
        assert (found.with_ct, found.rule) == (1, "deepcac2")
    with Release(tmp_path / "a.zip") as a, Release(runs["deepcac2-authors"]) as b:
        (pair,) = compare(a, b).pairs
    assert pair.dice == {"heart": None, "calcium": 1.0}
    assert pair.first == pair.second
    assert pair.first is not None
    assert pair.first > 0


# --- masks that are not what they should be -----------------------------------------------------------------


def without(field: str) -> Callable[[bytes], bytes]:
    return lambda header: b"\n".join(
        x for x in header.split(b"\n") if not x.startswith(field.encode() + b":")
    )


def instead(field: str, value: str) -> Callable[[bytes], bytes]:
    line = f"{field}: {value}".encode()
    return lambda header: b"\n".join(
        line if x.startswith(field.encode() + b":") else x for x in header.split(b"\n")
    )


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (without("space"), "seg", "doubtful header (it does not say 'space')"),
        (without("space directions"), "seg", "doubtful header (it does not say 'space directions')"),
        (without("space origin"), "seg", "doubtful header (it does not say 'space origin')"),
        (instead("space", "scanner-xyz"), "seg", "its space 'scanner-xyz' is none of the patient's"),
        (instead("space directions", "none (0,1,0) (0,0,1)"), "seg", "is not 3 of three numbers"),
        (instead("space directions", "(1,0,0) (0,0,0) (0,0,1)"), "seg", "not at right angles"),
        (instead("space directions", "(1,0,0) (0.1,1,0) (0,0,1)"), "seg", "not at right angles"),
        (instead("space directions", "(nan,0,0) (0,1,0) (0,0,1)"), "seg", "is not 3 of three numbers"),
        (instead("space origin", "(5,5,5)"), "ct", "does not lie where its CT lies"),
        (instead("space directions", "(9,0,0) (0,9,0) (0,0,9)"), "ct", "does not lie where its CT lies"),
        (instead("sizes", "64 32 24"), "ct", "24 x 32 x 64 voxels and its CT 12 x 64 x 64"),
        (instead("sizes", "64 64 13"), "seg", "cannot be read (its voxels are cut off or damaged)"),
        (instead("sizes", "1024 1024 1000"), "seg", "too short for its sizes"),
        (instead("encoding", "bzip2"), "seg", "its encoding 'bzip2' is not raw or gzip"),
        (instead("sizes", "65536 65536 65536"), "seg", "its sizes are"),
        (instead("dimension", "4"), "seg", "it has 4 dimensions"),
        (instead("type", "float"), "seg", "'float', no whole numbers"),
        (instead("encoding", "gzip\ndata file: /etc/passwd"), "seg", "its voxels lie in another file"),
        (instead("kinds", "domain domain domain\nspace: ras"), "seg", "its header has the line 'space: ras'"),
        (lambda header: b"NIFTI" + header, "seg", "does not begin with the header of one"),
    ],
)
def test_a_doubtful_header_is_an_error_and_never_a_guess(
    write: Write, ct: Path, chests: list[Chest], tmp_path: Path, change: Callable[[bytes], bytes], code: str,
    says: str,
) -> None:  # fmt: skip
    folder, place = write(tmp_path / "r"), chests[2].place
    path = folder / place / "nrrd" / "cac.seg.nrrd"
    header, _, data = path.read_bytes().partition(b"\n\n")
    path.write_bytes(change(header) + b"\n\n" + data)
    found = verified(folder, ct)
    ours = [p for p in found.problems if p.place == place]
    assert [p.code for p in ours] == [code]
    assert says in ours[0].message
    assert len(found.problems) == 1
    assert not found.scores.get(place)
    assert found.rule == "deepcac2"


def test_a_mask_is_whole_and_has_one_value(write: Write, chests: list[Chest], tmp_path: Path) -> None:
    folder = write(tmp_path / "r")
    cut, labelled, gone = (folder / chests[i].place / "nrrd" / "cac.seg.nrrd" for i in (1, 2, 3))
    cut.write_bytes(cut.read_bytes()[:-40])
    write_mask(labelled, chests[2], chests[2].mask + 2 * np.roll(chests[2].mask, 3, axis=0))
    gone.unlink()
    by_place = {p.place: p.message for p in verified(folder).problems}
    assert "cac.seg.nrrd cannot be read" in by_place[chests[1].place]
    assert "holds the values" in by_place[chests[2].place]
    assert by_place[chests[3].place] == "has no cac.seg.nrrd"


def test_a_mapped_mask_is_that_of_the_other(
    write: Write, ct: Path, chests: list[Chest], tmp_path: Path
) -> None:
    folder, chest = write(tmp_path / "r", both=True), chests[1]
    write_mask(folder / chest.place / "nrrd" / "mcac.seg.nrrd", chest, chest.mask)
    (problem,) = verified(folder, ct).problems
    assert (problem.code, problem.place) == ("seg", chest.place)
    assert "mcac.seg.nrrd is not the mapped cac.seg.nrrd" in problem.message


# --- reports ------------------------------------------------------------------------------------------------


def change(folder: Path, chest: Chest, **values: object) -> None:
    """Change a report, in the list of all as well."""
    values = {key.replace("_", " "): value for key, value in values.items()}
    report = json.loads((folder / chest.place / REPORT).read_text())
    everything = json.loads((folder / REPORT).read_text())
    write_json(folder / REPORT, [{**r, **values} if r == report else r for r in everything])
    write_json(folder / chest.place / REPORT, {**report, **values})


@pytest.mark.parametrize(
    ("score", "group", "right"),
    [
        (100.4, 1, True),  # of the whole number
        (100.4, 2, True),  # of the number: who rounds nothing
        (100.4, 3, False),
        (100.6, 1, False),
        (0.4, 0, True),
        (0.4, 1, True),
        (0.6, 0, False),
        (300.5, 2, True),  # halves go to the even number
        (301, 2, False),
        (0, 1, False),
    ],
)
def test_a_group_is_that_of_the_score_or_of_its_whole_number(
    write: Write, chests: list[Chest], tmp_path: Path, score: float, group: int, right: bool
) -> None:
    folder = write(tmp_path / "r")
    change(folder, chests[0], Predicted_Agatston_Score=score, Predicted_Risk_Group=group)
    assert [code for code, _ in said(verified(folder))] == ([] if right else ["risk-group"])


def test_a_report_says_everything_once_and_a_group_is_a_number(
    write: Write, chests: list[Chest], tmp_path: Path
) -> None:
    folder = write(tmp_path / "r")
    change(folder, chests[0], Predicted_Agatston_Score=50, Predicted_Risk_Group=True)  # which equals 1
    assert said(verified(folder)) == [("risk-group", "risk group True, for a score of 50 it is 1")]
    change(folder, chests[0], Predicted_Risk_Group=1)
    assert said(verified(folder)) == []
    path = folder / chests[0].place / REPORT
    path.write_text(path.read_text().replace("{", '{"Predicted Agatston Score": 400,', 1))
    messages = [message for _, message in said(verified(folder))]
    assert f"{REPORT} says twice: Predicted Agatston Score; programs disagree" in messages[0]


def test_with_the_ct_a_group_is_as_the_rule_rounds(
    write: Write, ct: Path, chests: list[Chest], tmp_path: Path
) -> None:
    """100.4 is no score of this rule, and its group 2 no group."""
    folder = write(tmp_path / "r")
    change(folder, chests[0], Predicted_Agatston_Score=100.4, Predicted_Risk_Group=2)
    found = verified(folder, ct)
    assert found.rule == "deepcac2"
    assert [code for code, _ in said(found)] == ["score", "risk-group"]
    assert "risk group 2, for a score of 100.4 by the rule deepcac2 it is 1" in found.problems[1].message


def test_a_mapped_group_is_that_of_the_mapped_score(
    write: Write, ct: Path, chests: list[Chest], tmp_path: Path
) -> None:
    """The authors' workflow fills it with the other group."""
    folder = write(tmp_path / "r", both=True)
    change(folder, chests[0], Mapped_Predicted_Agatston_Score=250, Mapped_Predicted_Risk_Group=1)
    code, message = said(verified(folder))[0]
    assert (code, message) == ("risk-group", "mapped risk group 1, for a score of 250 it is 2")
    assert any(
        code == "score" and message.startswith("stored mapped score 250, by the rule deepcac2-mapped")
        for code, message in said(verified(folder, ct))
    )


def test_a_report_names_its_patient_and_the_run_names_every_report(
    write: Write, ct: Path, chests: list[Chest], tmp_path: Path
) -> None:
    folder = write(tmp_path / "r")
    change(folder, chests[0], PatientID="another")
    assert said(verified(folder)) == []  # nothing in the layout says who it is
    assert said(verified(folder, ct)) == [("report", "PatientID is another than the CT's")]
    change(folder, chests[0], PatientID=7)
    assert ("report", "PatientID is 7, the folder another") in said(verified(folder))

    folder = write(tmp_path / "s")
    first, second, *rest = json.loads((folder / REPORT).read_text())
    foreign = {**first, "SeriesInstanceUID": "1.2"}
    write_json(folder / REPORT, [{**second, "Predicted Agatston Score": -1}, *rest, rest[0], foreign])
    uids = [r["SeriesInstanceUID"] for r in (first, second)]
    assert {m for _, m in said(verified(folder))} == {
        "names a series twice",
        f"lacks the series {uids[0]}",
        f"says of the series {uids[1]} something else than its own report",
        "names the series 1.2, of which no report is here",
    }
    for text, says in (("{}", "is no list"), ("[1]", "is no list"), ("[", "no JSON")):
        (folder / REPORT).write_text(text)
        assert any(says in message for _, message in said(verified(folder)))


def test_in_the_published_layout_the_patient_is_the_folders(chests: list[Chest], tmp_path: Path) -> None:
    chest = chests[0]
    place = tmp_path / chest.series.patient_id / chest.series.series_uid
    write_segmentation(
        place / "cac.seg.dcm", series=chest.series, geometry=chest.volume.geometry, heart=chest.mask,
        calcium=chest.mask, algorithm_version="0",
    )  # fmt: skip
    report = {
        "PatientID": chest.series.patient_id,
        "Predicted Agatston Score": 100.4,
        "Predicted Risk Group": 1,
        "SeriesInstanceUID": chest.series.series_uid,
    }
    write_json(place / REPORT, report)
    assert said(verified(tmp_path)) == []
    write_json(place / REPORT, {**report, "PatientID": "another"})
    assert said(verified(tmp_path)) == [("report", "PatientID is 'another', the folder another")]
    write_json(place / REPORT, {**report, "Mapped Predicted Risk Group": 1})  # half of a pair
    assert [code for code, _ in said(verified(tmp_path))] == ["report"]


# --- compared -----------------------------------------------------------------------------------------------


def test_compared_with_another_and_with_the_published_layout(
    write: Write, chests: list[Chest], tmp_path: Path
) -> None:
    folder = write(tmp_path / "a")
    other = write(tmp_path / "b")
    chest = chests[1]
    less = chest.mask.copy()
    less[: len(less) // 2] = False
    write_mask(other / chest.place / "nrrd" / "cac.seg.nrrd", chest, less)
    (other / chests[2].place / "nrrd" / "cac.seg.nrrd").unlink()
    with Release(folder) as a, Release(other) as b:
        found = compare(a, b)
    pairs = {p.place: p for p in found.pairs}
    assert pairs[chests[0].place].dice == {"heart": None, "calcium": 1.0}
    expected = 2 * int(less.sum()) / (int(less.sum()) + int(chest.mask.sum()))
    assert pairs[chest.place].dice["calcium"] == pytest.approx(expected)
    assert pairs[chests[2].place].note == "cac.seg.nrrd is missing"

    segs = tmp_path / "segs"
    for c in chests[:2]:
        place = segs / c.series.patient_id / c.series.series_uid
        write_segmentation(
            place / "cac.seg.dcm", series=c.series, geometry=c.volume.geometry, heart=c.mask, calcium=c.mask,
            algorithm_version="0",
        )  # fmt: skip
        shutil.copy(folder / c.place / REPORT, place / REPORT)
    for one, two in ((folder, segs), (segs, other)):
        with Release(one) as a, Release(two) as b:
            found = compare(a, b)
        assert {p.place.rpartition("/")[2] for p in found.pairs} == {c.place for c in chests[:2]}
        dice = [p.dice["calcium"] for p in found.pairs if p.place.endswith(chest.place)]
        assert dice == [1.0 if two == segs else pytest.approx(expected)]
        assert all(p.difference == 0 for p in found.pairs)
    assert {len(found.only_first), len(found.only_second)} == {0, 2}


def test_names_that_would_be_read_twice(write: Write, chests: list[Chest], tmp_path: Path) -> None:
    folder, place = write(tmp_path / "r"), chests[1].place
    shutil.copy(folder / place / "nrrd" / "cac.seg.nrrd", folder / place / "cac.seg.nrrd")
    assert [code for code, _ in said(verified(folder))] == ["structure"]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(f"../{place}/nrrd/cac.seg.nrrd", "x")
        archive.write(folder / place / REPORT, f"{place}/{REPORT}")
    with Release(tmp_path / "a.zip") as release:
        messages = {m for _, m in said(verify(release))}
    assert "has no cac.seg.nrrd" in messages
    assert any("its name leads elsewhere" in m for m in messages)
