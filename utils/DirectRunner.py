"""MHub module: direct scoring, by a regression network."""

# mhubio compares annotations with types, so none may be a string here; and it has no types:
# mypy: allow-subclassing-any, allow-untyped-decorators

from pathlib import Path

from mhubio.core import IO, Instance, InstanceData, Module, ValueOutput
from mhubio.core.Logger import ConsoleCapture

from ..imaging.files import write_image
from ..pipeline.chain import choose_device, describe_device, on_device
from ..pipeline.outputs import report_values
from ..pipeline.stages import ScoreDirectly
from ..weights import resolve
from .handover import ATTENTION, CASE, CT, for_each_case, heart_path, read_case, write_case


@ValueOutput.Name("direct_score")
@ValueOutput.Label("Direct Agatston Score")
@ValueOutput.Type(float)
@ValueOutput.Description("Agatston score read off the slices, 0 or more; no segmentation.")
class DirectScore(ValueOutput):
    """mhubio's record of the score."""


@ValueOutput.Name("direct_group")
@ValueOutput.Label("Direct Risk Group of Five")
@ValueOutput.Type(int)
@ValueOutput.Description("0: below 1; 1: below 10; 2: below 100; 3: below 400; 4: 400 and above.")
class DirectGroup(ValueOutput):
    """mhubio's record of the risk group."""


@IO.Config("weights", str, "bundled", the="name in weights/manifest.json, or folder of a set of weights")
@IO.Config("localise", str, "networks", the="where the heart's box comes from: networks, or heart (its mask)")
class DirectRunner(Module):
    """Read the score off the slices. The models are loaded once."""

    weights: str
    localise: str

    def task(self) -> None:
        """Score every series.

        Raises:
            WeightsError: Weights are missing, altered or of an unknown kind.
        """
        with ConsoleCapture(self.config.logger):
            from ..models.direct import DirectModel

            self.set = resolve(self.weights, "direct")
            self.device = choose_device("auto")
            stage = ScoreDirectly(
                model=DirectModel.load(self.set, self.device),
                weights=self.set,
                localise=self.localise,
            )
            self.stage = on_device(stage, self.device)
        self.log(f"device: {describe_device(self.device)}; weights: {self.set.name} {self.set.hash[:12]}")
        self.score()

    @for_each_case
    @IO.Input("in_case", CASE, the="header facts of the series")
    @IO.Input("in_data", CT, the="CT, int16 HU")
    @IO.Output("out_data", "attention.nii.gz", ATTENTION, data="in_data", the="where what counted lies")
    @IO.OutputData("direct_score", DirectScore, the="Agatston score")
    @IO.OutputData("direct_group", DirectGroup, the="risk group, 0 to 4")
    def score(
        self,
        instance: Instance,
        in_case: InstanceData,
        in_data: InstanceData,
        out_data: InstanceData,
        direct_score: DirectScore,
        direct_group: DirectGroup,
    ) -> None:
        """Score one series."""
        path = Path(in_case.abspath)
        heart = heart_path(instance) if self.localise == "heart" else None
        case = self.stage(read_case(path, ct=Path(in_data.abspath), heart=heart))
        write_case(path, case)
        if case.attention is not None and case.volume is not None:
            write_image(Path(out_data.abspath), case.attention, case.volume.geometry)
        values = report_values(case)
        direct_score.value, direct_group.value = values.get("direct_score"), values.get("direct_group")
