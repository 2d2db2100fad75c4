"""MHub module: Agatston score and risk group."""

# mhubio compares annotations with types, so none may be a string here; and it has no types:
# mypy: allow-subclassing-any, allow-untyped-decorators

from pathlib import Path

from mhubio.core import IO, Instance, InstanceData, Module, ValueOutput

from ..pipeline.outputs import report_values
from ..pipeline.stages import ScoreCalcium
from .handover import CALCIUM, CASE, CT, for_each_case, read_case, workflow_of, write_case


@ValueOutput.Name("agatston_score")
@ValueOutput.Label("Predicted Agatston Score")
@ValueOutput.Type(float)
@ValueOutput.Description("Agatston score of the coronary calcium, 0 or more.")
class AgatstonScore(ValueOutput):
    """mhubio's record of the score."""


@ValueOutput.Name("risk_group")
@ValueOutput.Label("Predicted Risk Group")
@ValueOutput.Type(int)
@ValueOutput.Description("0: score 0; 1: up to 100; 2: up to 300; 3: above 300.")
class RiskGroup(ValueOutput):
    """mhubio's record of the risk group."""


@IO.Config("rule", str, "agatston", the="scoring rule, one of deepcac2.scoring.RULES")
@IO.Config(
    "calibration_factor", float | None, None, the="mg of calcium per mm³ and HU, for the mass; null: no mass"
)
class AGSCalculator(Module):
    """Score the calcium by a named rule."""

    rule: str
    calibration_factor: float | None

    @for_each_case
    @IO.Input("in_case", CASE, the="header facts of the series")
    @IO.Input("in_data", CT, the="CT, int16 HU")
    @IO.Input("in_calcium", CALCIUM, the="coronary calcium, 0 and 1")
    @IO.OutputData("agatston_score", AgatstonScore, the="Agatston score")
    @IO.OutputData("risk_group", RiskGroup, the="risk group, 0 to 3")
    def task(
        self,
        instance: Instance,
        in_case: InstanceData,
        in_data: InstanceData,
        in_calcium: InstanceData,
        agatston_score: AgatstonScore,
        risk_group: RiskGroup,
    ) -> None:
        """Score one series."""
        path = Path(in_case.abspath)
        allow = workflow_of(self.config).options("DicomImporter").allow
        stage = ScoreCalcium(rule=self.rule, calibration_factor=self.calibration_factor, allow=allow)
        case = stage(read_case(path, ct=Path(in_data.abspath), calcium=Path(in_calcium.abspath)))
        write_case(path, case)
        values = report_values(case)
        agatston_score.value, risk_group.value = values.get("agatston_score"), values.get("risk_group")
