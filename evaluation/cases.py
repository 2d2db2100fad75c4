"""How good results are where the truth is known: every scan against its annotation.

The truth is a folder of annotated scans (`datasets`), simulated or real. What is judged is the output folder
of `deepcac2 run` (`evaluate_results`), or what the same stages find now, in memory (`evaluate_scans`).
`summary` turns the cases into statistics, `report` into pages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from ..dicom import Series, discover, read_segmentation, safe_name
from ..dicom.discovery import files_under
from ..dicom.gates import is_sharp_kernel
from ..dicom.seg.reader import is_segmentation, read_arteries
from ..errors import (
    InputError,
    NoDicomFound,
    TrainingError,
    WeightsError,
    WorkflowError,
)
from ..imaging import Geometry, Volume
from ..imaging.labels import ARTERIES as ARTERY_LABELS
from ..imaging.labels import NOT_SURE, Labels
from ..imaging.masks import box_centre
from ..imaging.noise import noise_sd
from ..pipeline.arteries import ARTERIES, BY_CLASS
from ..pipeline.case import Case, Fact
from ..pipeline.chain import Chain, build_chain
from ..pipeline.doubt import DOUBT
from ..pipeline.facts import CALCIUM, CT, DOMAIN, HEART, SCORE
from ..pipeline.places import DETAILS_NAME, series_folder
from ..pipeline.run import read_details
from ..pipeline.step import roles
from ..scoring import CalciumScore, Rule, risk_group, score
from ..scoring.lesions import lesion_voxels
from ..system.foreign import foreign, read_json
from ..weights import load_manifest, resolve
from .by_name import ArteryScores, TrueArtery, WronglyCounted, artery_scores, by_artery, wrongly_counted
from .datasets import AnnotatedScan, AnnotatedSource, annotated_sources, mapped_series, segmentations
from .metrics import centre_distance, dice, hausdorff_95

if TYPE_CHECKING:
    import torch

    from ..pipeline.workflow import Workflow

BoolArray = npt.NDArray[np.bool_]

COMPARE = "compare the methods that have none with: deepcac2 compare"

STATUSES = ("scored", "rejected", "failed", "missing", "unreadable")
"""Of a case: the first three as in a run's table; ``missing``: the run knows no such series;
``unreadable``: the annotation cannot be used."""

_AIR_HU = -1024


@dataclass(frozen=True, kw_only=True)
class TrueLesion:
    """One lesion of the truth: counted voxels that touch over 26 neighbours.

    Attributes:
        artery: ``"LM"``, ``"LAD"``, ``"LCX"``, ``"RCA"`` where the truth says so, else "".
        volume_mm3: Of its counted voxels.
        max_hu: Its highest HU.
        found: Whether the predicted calcium mask holds at least one of its voxels.
    """

    artery: str
    volume_mm3: float
    max_hu: int
    found: bool


@dataclass(frozen=True, kw_only=True)
class CountedLesion:
    """One lesion of the prediction.

    Attributes:
        certainty: How sure the network was where it was surest, percent.
        true: Whether it shares a voxel with the true mask.
    """

    certainty: int
    true: bool


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """One scan against the truth. What was not annotated, or not reached, is None.

    Voxels that the truth labels not sure are in none of its numbers of calcium and score.

    Attributes:
        name: Of the case, for reports. May be a PatientID.
        patient: Whose scan it is; cases of one patient are resampled together.
        simulated: Whether this is a simulated patient.
        status: See `STATUSES`; reason: why it was not scored, "" otherwise.
        series_uid: "" where the scan is no DICOM.
        kernel: As in the header, "" unknown; sharp: a lung or bone kernel.
        noise_hu: Measured in the true heart (`imaging.noise.noise_sd`).
        heart_dice: In [0, 1]. heart_hd95_mm: `hausdorff_95`. centre_error_mm: between the centres of
            gravity. crop_error_mm: between the centres on which the calcium crop is laid.
        calcium_dice: Of the masks, in [0, 1]. counted_dice: of what counts of them by the rule.
        score, true_score: Agatston scores by the same rule; group, true_group: 0 to 3.
        lesions: Of the truth.
        false_lesions: Volume, mm³, of each predicted lesion that shares no voxel with the true mask.
        counted: Lesions of the prediction, where it says how sure it was of each.
        interval: Between which scores the prediction says that the true one lies, [from, to].
        arteries: Calcium found by artery, where the truth names arteries.
        artery_scores: The scores by artery, where the truth names the artery of all calcium.
        wrong: What was wrongly counted, by kind, where the truth names what is not coronary.
        warnings: Codes, of the prediction.
        off_domain: In what the scan is unlike those that the weights were trained on (`pipeline.domain`).
    """

    name: str
    patient: str
    simulated: bool = False
    status: str = "scored"
    reason: str = ""
    series_uid: str = ""
    kernel: str = ""
    sharp: bool | None = None
    noise_hu: float | None = None
    thickness_mm: float | None = None
    increment_mm: float | None = None
    kvp: float | None = None
    heart_dice: float | None = None
    heart_hd95_mm: float | None = None
    centre_error_mm: float | None = None
    crop_error_mm: float | None = None
    heart_volume_ml: float | None = None
    true_heart_volume_ml: float | None = None
    calcium_dice: float | None = None
    counted_dice: float | None = None
    score: float | None = None
    true_score: float | None = None
    group: int | None = None
    true_group: int | None = None
    lesions: tuple[TrueLesion, ...] = ()
    false_lesions: tuple[float, ...] | None = None
    counted: tuple[CountedLesion, ...] | None = None
    interval: tuple[float, float] | None = None
    arteries: tuple[TrueArtery, ...] = ()
    artery_scores: ArteryScores | None = None
    wrong: tuple[WronglyCounted, ...] | None = None
    warnings: tuple[str, ...] = ()
    off_domain: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All cases, and what was judged.

    Attributes:
        cases: One per annotated scan, those that were not scored too.
        weights: Per role (``"heart"``, ``"calcium"``): ``name``, ``sha256`` and, where known,
            ``training_data``, ``intended_use``, ``licence``.
        rule: Of the scores, "" where nothing was scored.
        version: Of the deepcac2 that made the results.
        unmatched: Scored series without a truth.
    """

    cases: tuple[CaseResult, ...]
    weights: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rule: str = ""
    version: str = ""
    unmatched: int = 0

    @property
    def scored(self) -> tuple[CaseResult, ...]:
        """The cases that were scored."""
        return tuple(c for c in self.cases if c.status == "scored")

    def count(self, status: str) -> int:
        """Cases of a status."""
        return sum(c.status == status for c in self.cases)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What was found in one scan.

    Attributes:
        status, reason: As in `CaseResult`; without masks unless ``"scored"``.
        heart, calcium: bool (z, y, x) on the scan's grid.
        arteries: The calcium by artery; None where no arteries are named.
        score: Agatston score by `rule`; None without one.
        certainty: Of its lesions in their order, percent; None where it does not say.
        interval: As in `CaseResult`.
        warnings: Codes.
        off_domain: As in `CaseResult`.
    """

    status: str
    reason: str = ""
    heart: BoolArray | None = None
    calcium: BoolArray | None = None
    arteries: Labels | None = None
    score: float | None = None
    rule: Rule | None = None
    certainty: tuple[int, ...] | None = None
    interval: tuple[float, float] | None = None
    warnings: tuple[str, ...] = ()
    off_domain: tuple[str, ...] | None = None


class Predictor(Protocol):
    """Where predictions come from.

    Attributes:
        allow: Codes of gates that warned instead of rejecting.
    """

    allow: frozenset[str]

    def predict(self, series: Series, volume: Volume | None) -> Prediction:
        """The prediction for a scan; without a volume (its CT cannot be used), only why there is none."""


def evaluate_results(
    results: Path, truth: Path, *, watch: Callable[[int, int], None] = lambda done, total: None
) -> Evaluation:
    """Compare the output of `deepcac2 run` with annotated DICOM scans.

    Args:
        results: Output folder of a run.
        truth: CT series with their DICOM SEGs, as `deepcac2 simulate` writes them or of other origin.
        watch: Called with the number of scans done and of all.

    Raises:
        InputError: There is no truth or no run, the one lies in the other, a file cannot be read, or the run
            was one without a calcium mask and its score.
    """
    inner, outer = results.resolve(), truth.resolve()
    if inner == outer or outer in inner.parents:
        raise InputError(f"{results} lies in {truth}: its SEGs would pass for the truth; move it out")
    stored = _StoredResults(results)
    cases = _evaluate(truth, stored, watch, simulated=False)
    known = {safe_name(c.series_uid) for c in cases}
    return Evaluation(
        cases=cases,
        weights={role: _about(w["name"], w["sha256"]) for role, w in stored.made_by["weights"].items()},
        rule=stored.rule,
        version=str(stored.made_by["deepcac2"]),
        unmatched=sum(
            read_details(p.parent)["status"] == "scored"
            for p in results.glob("*/*/details.json")
            if p.parent.name not in known
        ),
    )


def evaluate_scans(
    data: Path,
    *,
    workflow: Workflow,
    device: torch.device,
    allow: Collection[str] = (),
    simulated: bool = False,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Run the stages of `workflow` on annotated scans of any layout, in memory, and judge what they find.

    Args:
        data: Annotated scans, see `datasets`.
        device: For the networks.
        allow: Codes of gates that warn instead of reject.
        simulated: The scans that are no DICOM are simulated ones, too.
        watch: Called with the number of scans done and of all.

    Raises:
        InputError: There is no truth.
        WeightsError: Weights are missing, altered or of an unknown kind.
        WorkflowError: The workflow has no calcium mask and its score.
    """
    if workflow.options("AGSCalculator") is None:
        raise WorkflowError(f"the workflow {workflow.name!r} scores no calcium mask; {COMPARE}")
    chain = build_chain(workflow, output=Path(), device=device, allow=allow, phases=["compute"])
    cases = _evaluate(data, _InMemory(chain), watch, simulated=simulated)
    names = {role: module for module, role in roles().items() if workflow.options(module) is not None}
    return Evaluation(
        cases=cases,
        weights={
            role: _about(w["name"], w["sha256"], workflow.options(names[role]).weights)
            for role, w in chain.provenance["weights"].items()
        },
        rule=workflow.options("AGSCalculator").rule,
        version=str(chain.provenance["deepcac2"]),
    )


def _about(name: str, sha256: str, path: str = "") -> dict[str, Any]:
    """What the description of a set of weights says, if the set is here and the same."""
    about: dict[str, Any] = {"name": name, "sha256": sha256}
    try:
        found = resolve(path if path not in ("", "bundled") else name)
    except WeightsError:
        return about
    if found.hash == sha256:
        entry = load_manifest().get(name)
        for key in ("training_data", "intended_use", "licence"):
            about[key] = getattr(entry, key, "") or found.metadata.get(key, "")
    return about


class _StoredResults:
    """The output folder of a run."""

    def __init__(self, folder: Path) -> None:
        path = folder / "run.json"
        advice = "give the output folder of 'deepcac2 run'"
        with foreign(str(path), advice=advice):
            self.made_by = read_json(path, advice=advice)["made_with"]
            self.allow = frozenset(self.made_by["allowed_gates"])
            roles = set(self.made_by["weights"])
        if roles & {"screening", "direct"} and "calcium" not in roles:
            raise InputError(f"{folder} holds a run that scored no calcium mask; {COMPARE}")
        self.folder = folder
        self.rule = ""

    def predict(self, series: Series, volume: Volume | None) -> Prediction:
        if not series.series_uid:
            reason = "no DICOM, so no run can be matched with it; use: deepcac2 evaluate --data FOLDER"
            return Prediction(status="missing", reason=reason)
        folder = self.folder / series_folder(series)
        if not folder.exists():
            return Prediction(status="missing", reason="the results hold no such series")
        content = read_details(folder)
        if content["status"] != "scored" or volume is None:
            return Prediction(status=content["status"], reason=content.get("reason", ""))
        path = self._segmentation(folder, content)
        masks = read_segmentation(path, volume.geometry)
        rule = Rule.from_parameters(content["score"]["parameters"])
        self.rule = rule.name
        return Prediction(
            status="scored",
            heart=masks.get("heart"),
            calcium=masks.get("calcium"),
            arteries=_named(path, volume.geometry) if BY_CLASS.section in content else None,
            score=float(content["score"]["total"]),
            rule=rule,
            certainty=_certainties(lesion.get("certainty") for lesion in content["score"]["lesions"]),
            interval=_interval(content.get(DOUBT.section)),
            warnings=tuple(w["code"] for w in content.get("warnings", ())),
            off_domain=_outside(content.get("domain")),
        )

    def _segmentation(self, folder: Path, content: Mapping[str, Any]) -> Path:
        """The SEG among the files that a series' details name, whatever the workflow called it."""
        named = (folder / str(name) for name in content.get("outputs", ()))
        found = [path for path in named if path.suffix == ".dcm" and is_segmentation(path)]
        if len(found) != 1:
            raise InputError(
                f"{folder / DETAILS_NAME} names {len(found)} DICOM SEGs, not one; run a workflow whose "
                "DataOrganizer leaves the SEG beside the details"
            )
        return found[0]


class _InMemory:
    """The stages, run now."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.allow = frozenset(chain.provenance["allowed_gates"])

    def predict(self, series: Series, volume: Volume | None) -> Prediction:
        if series.rejection is not None:
            return Prediction(status="rejected", reason=series.rejection.message)
        if volume is None:
            return Prediction(status="failed", reason="the CT is not there")
        case = self.chain(Case(series=series, facts={CT: volume}, findings=series.warnings))
        if case.stop is not None:
            return Prediction(status=case.stop.status, reason=case.stop.reason)
        found = case.get(SCORE)
        return Prediction(
            status="scored",
            heart=_mask(case, HEART),
            calcium=_mask(case, CALCIUM),
            arteries=case.get(ARTERIES),
            score=None if found is None else found.total,
            rule=None if found is None else Rule.from_parameters(found.parameters),
            certainty=None if found is None else _certainties(x.certainty for x in found.lesions),
            interval=_interval(case.get(DOUBT)),
            warnings=tuple(f.code for f in case.warnings),
            off_domain=_outside(case.get(DOMAIN)),
        )


def _named(path: Path, geometry: Geometry) -> Labels:
    """The calcium of a SEG by artery; of one that was made with names and has none, none."""
    nothing = Labels(array=np.zeros(geometry.shape, np.uint8), classes=(*ARTERY_LABELS, NOT_SURE))
    return read_arteries(path, geometry) or nothing


def _certainties(of_lesions: Iterable[int | None]) -> tuple[int, ...] | None:
    known = tuple(of_lesions)
    return tuple(c for c in known if c is not None) if None not in known else None


def _interval(doubt: Mapping[str, Any] | None) -> tuple[float, float] | None:
    interval = (doubt or {}).get("interval")
    return None if interval is None else (float(interval["score"][0]), float(interval["score"][1]))


def _mask(case: Case, fact: Fact[Labels]) -> BoolArray | None:
    return case[fact].mask if fact in case else None


def _outside(domain: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """In what a scan is unlike what the weights know, as `pipeline.domain.compare` found it."""
    return None if domain is None else tuple(domain.get("outside", ()))


def _evaluate(
    truth: Path, predictor: Predictor, watch: Callable[[int, int], None], *, simulated: bool
) -> tuple[CaseResult, ...]:
    try:
        sources = annotated_sources(truth, allow=predictor.allow)
    except TrainingError as error:
        raise InputError(str(error)) from error
    known = _simulations(truth)
    cases = []
    for done, source in enumerate(sources):
        watch(done, len(sources))
        cases.append(_case(source, predictor, known, simulated))
    watch(len(sources), len(sources))
    cases += _left_out(truth, {c.series_uid for c in cases}, predictor, known)
    return tuple(cases)


def _simulations(truth: Path) -> dict[str, dict[str, Any]]:
    """Every ``truth.json`` of `deepcac2 simulate` below a folder, by SeriesInstanceUID."""
    found = {}
    for path in (path for path in files_under(truth) if path.name == "truth.json"):
        with foreign(str(path), advice="simulate that patient again"):
            content = read_json(path)
            found[str(content["series_uid"])] = content
    return found


def _case(
    source: AnnotatedSource, predictor: Predictor, known: Mapping[str, dict[str, Any]], simulated: bool
) -> CaseResult:
    base = CaseResult(name=source.name, patient=source.patient, simulated=simulated)
    try:
        scan = source.load()
    except TrainingError as error:
        return replace(base, status="unreadable", reason=str(error))
    series = scan.series or Series(series_uid="")
    facts = known.get(series.series_uid, {})
    base = replace(_described(base, series, facts), **_of_truth(scan))
    try:
        prediction = predictor.predict(series, scan.volume)
    except InputError as error:
        return replace(base, status="failed", reason=str(error))
    return compared(base, scan, prediction)


def compared(base: CaseResult, scan: AnnotatedScan, prediction: Prediction) -> CaseResult:
    """The case `base` with what a prediction found and how far it agrees with the annotation."""
    scan, prediction = _where_sure(scan, prediction)
    true: dict[str, Any] = {}
    if scan.calcium is not None:
        truth = _score(scan, scan.calcium, prediction.rule)
        true = {"true_score": truth.total, "true_group": int(truth.risk_group)}
    base = replace(
        base,
        status=prediction.status,
        reason=prediction.reason,
        warnings=prediction.warnings,
        off_domain=prediction.off_domain,
    )
    if prediction.status != "scored":
        return replace(base, **true)
    return replace(base, **true, **_heart(scan, prediction), **_calcium(scan, prediction))


def _where_sure(scan: AnnotatedScan, prediction: Prediction) -> tuple[AnnotatedScan, Prediction]:
    """Truth and prediction without the voxels that are labelled not sure, and the score of what is left.

    They become air in the CT, too, so that no rule which takes whole pieces of it gets them back.
    """
    if scan.unsure is None or not scan.unsure.any():
        return scan, prediction
    sure = ~scan.unsure
    hu = np.where(sure, scan.volume.hu, np.int16(_AIR_HU))
    calcium = None if scan.calcium is None else scan.calcium & sure
    scan = replace(scan, volume=replace(scan.volume, hu=hu), calcium=calcium)
    if prediction.calcium is not None:
        found = prediction.calcium & sure
        total = None if prediction.score is None else _score(scan, found, prediction.rule).total
        # its lesions are others now, and the interval was that of the whole
        prediction = replace(prediction, calcium=found, score=total, certainty=None, interval=None)
    return scan, prediction


def _score(
    scan: AnnotatedScan,
    mask: BoolArray,
    rule: Rule | None,
    certainty: npt.NDArray[np.uint8] | None = None,
) -> CalciumScore:
    """A mask of a scan by the rule of the prediction, else the default one; see `score` for the rest."""
    thickness = _thickness(scan)
    return score(scan.volume, mask, rule=rule or "agatston", slice_thickness=thickness, certainty=certainty)


def _thickness(scan: AnnotatedScan) -> float | None:
    return None if scan.series is None else scan.series.slice_thickness


def _described(base: CaseResult, series: Series, facts: Mapping[str, Any]) -> CaseResult:
    """The case with what headers and simulation say about the scan."""
    return replace(
        base,
        name=str(facts.get("patient_id", base.name)),
        simulated=base.simulated or bool(facts),
        series_uid=series.series_uid,
        kernel=series.kernel.split("\\")[0].strip(),
        sharp=is_sharp_kernel(series.kernel) if series.kernel else None,
        thickness_mm=series.slice_thickness,
        kvp=series.kvp,
    )


def _of_truth(scan: AnnotatedScan) -> dict[str, Any]:
    geometry = scan.volume.geometry
    known: dict[str, Any] = {"increment_mm": round(geometry.spacing[0], 4)}
    if scan.heart is not None:
        known["noise_hu"] = noise_sd(scan.volume, scan.heart)
        known["true_heart_volume_ml"] = _millilitres(scan.heart, geometry)
    return known


def _millilitres(mask: BoolArray, geometry: Geometry) -> float:
    return round(float(mask.sum()) * geometry.voxel_volume / 1000, 1)


def _heart(scan: AnnotatedScan, prediction: Prediction) -> dict[str, Any]:
    true, ours, geometry = scan.heart, prediction.heart, scan.volume.geometry
    if true is None or ours is None:
        return {}
    crop = None
    if true.any() and ours.any():
        crop = math.dist(box_centre(true, geometry), box_centre(ours, geometry))
    return {
        "heart_dice": dice(true, ours),
        "heart_hd95_mm": hausdorff_95(true, ours, geometry),
        "centre_error_mm": centre_distance(true, ours, geometry),
        "crop_error_mm": crop,
        "heart_volume_ml": _millilitres(ours, geometry),
    }


def _calcium(scan: AnnotatedScan, prediction: Prediction) -> dict[str, Any]:
    true, ours, volume = scan.calcium, prediction.calcium, scan.volume
    if true is None or ours is None or prediction.score is None:
        return {}
    # what touches the truth is "certain" of it
    scores = [_score(scan, mask, prediction.rule, true.view(np.uint8)) for mask in (true, ours)]
    counted = [found.counted for found in scores]
    arteries = scan.arteries
    found: dict[str, Any] = {
        "calcium_dice": dice(true, ours),
        "counted_dice": dice(*counted),
        "score": prediction.score,
        "group": int(risk_group(prediction.score)),
        "lesions": true_lesions(volume, true, ours, arteries),
        "false_lesions": false_lesions(volume, true, ours),
        "interval": prediction.interval,
    }
    if prediction.certainty is not None:
        found["counted"] = tuple(
            CountedLesion(certainty=percent, true=bool(lesion.certainty))
            for percent, lesion in zip(prediction.certainty, scores[1].lesions, strict=True)
        )
    if arteries is not None:
        found["arteries"] = by_artery(volume, arteries, ours, prediction.arteries)
        if not (true & (arteries.array == 0)).any():
            found["artery_scores"] = artery_scores(
                volume,
                arteries,
                ours,
                prediction.arteries,
                rule=prediction.rule or "agatston",
                slice_thickness=_thickness(scan),
            )
    if scan.others is not None:
        found["wrong"] = wrongly_counted(
            volume,
            true,
            scan.others,
            counted[1],
            unsure=scan.unsure,
            rule=prediction.rule or "agatston",
            slice_thickness=_thickness(scan),
        )
    return found


def true_lesions(
    volume: Volume, true: BoolArray, ours: BoolArray, arteries: Labels | None = None
) -> tuple[TrueLesion, ...]:
    """The lesions of the true mask, and which of them were found.

    A lesion: voxels of the mask that count by the rule `agatston` (≥ 130 HU, pieces of at least 1 mm² in
    their slice) and touch over 26 neighbours. Found: at least one of its voxels lies in the predicted mask.
    Its artery is that of most of its voxels that have one.

    Args:
        volume: The CT.
        true, ours: bool (z, y, x).
        arteries: Classes `labels.ARTERIES`, where the truth names them.
    """
    index, lesion = lesion_voxels(volume, true)
    hits = np.bincount(lesion, weights=ours[tuple(index.T)])
    hu = volume.hu[tuple(index.T)]
    artery = np.zeros(len(index), np.uint8) if arteries is None else arteries.array[tuple(index.T)]
    return tuple(
        TrueLesion(
            artery=_most(artery[lesion == k]),
            volume_mm3=round(float((lesion == k).sum()) * volume.geometry.voxel_volume, 3),
            max_hu=int(hu[lesion == k].max()),
            found=bool(hits[k] > 0),
        )
        for k in range(len(hits))
    )


def _most(artery: npt.NDArray[np.uint8]) -> str:
    """The artery that most voxels have that have one, "" where none has; of equals the first."""
    voxels = [int((artery == label.value).sum()) for label in ARTERY_LABELS]
    return ARTERY_LABELS[int(np.argmax(voxels))].name if any(voxels) else ""


def false_lesions(volume: Volume, true: BoolArray, ours: BoolArray) -> tuple[float, ...]:
    """Volume, mm³, of each lesion of the predicted mask that shares no voxel with the true one.

    Lesions are made as in `true_lesions`.
    """
    index, lesion = lesion_voxels(volume, ours)
    sizes = np.bincount(lesion)
    hits = np.bincount(lesion, weights=true[tuple(index.T)])
    return tuple(round(float(s) * volume.geometry.voxel_volume, 3) for s in sizes[hits == 0])


def _left_out(
    truth: Path, judged: Collection[str], predictor: Predictor, known: Mapping[str, dict[str, Any]]
) -> Iterator[CaseResult]:
    """The annotated series whose CT is rejected or absent: counted, never dropped."""
    for one in mapped_series(truth, predictor.allow):
        if one.series.rejection is not None:
            case = CaseResult(name=one.name, patient=one.series.patient_id or one.name)
            yield _not_read(_described(case, one.series, {}), one.series, predictor)
    try:
        series = {s.series_uid: s for s in discover(truth, allow=predictor.allow).series}
    except NoDicomFound:
        return
    for uid, paths in segmentations(series.values()).items():
        if uid in judged:
            continue
        name = paths[0].parent.relative_to(truth).as_posix()
        ct = series.get(uid, Series(series_uid=uid))
        case = CaseResult(name=name, patient=ct.patient_id or name)
        case = _described(case, ct, known.get(uid, {}))
        if uid not in series:
            yield replace(case, status="unreadable", reason="its CT is not in the folder")
            continue
        yield _not_read(case, ct, predictor)


def _not_read(case: CaseResult, ct: Series, predictor: Predictor) -> CaseResult:
    """The case of a CT that was not read for the truth."""
    prediction = predictor.predict(ct, None)
    if prediction.status == "scored":  # with another version's gates
        reason = "" if ct.rejection is None else ct.rejection.message
        return replace(case, status="unreadable", reason=f"its CT was not read for the truth: {reason}")
    return replace(case, status=prediction.status, reason=prediction.reason)


def to_dict(evaluation: Evaluation) -> dict[str, Any]:
    """JSON types only."""
    return asdict(evaluation)
