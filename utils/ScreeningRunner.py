"""MHub module: exclusion of scans without coronary calcium, by three 2D networks."""

# mhubio compares annotations with types, so none may be a string here; and it has no types:
# mypy: allow-subclassing-any, allow-untyped-decorators

from pathlib import Path

from mhubio.core import IO, Instance, InstanceData, Module, ValueOutput
from mhubio.core.Logger import ConsoleCapture

from ..pipeline.chain import choose_device, describe_device, on_device
from ..pipeline.outputs import report_values
from ..pipeline.stages import Screen
from ..weights import resolve
from .handover import (
    CASE,
    CT,
    SCREENED,
    for_each_case,
    heart_path,
    read_case,
    write_case,
    write_mask,
)


@ValueOutput.Name("calcium_possible")
@ValueOutput.Label("Coronary Calcium Possible")
@ValueOutput.Type(bool)
@ValueOutput.Description("Whether the exclusion found anything that may be coronary calcium.")
class CalciumPossible(ValueOutput):
    """mhubio's record of the answer."""


@IO.Config("weights", str, "bundled", the="name in weights/manifest.json, or folder of a set of weights")
@IO.Config("localise", str, "heart", the="where the crop is laid: heart (its mask) or chest-wall")
@IO.Config(
    "heart_margin_mm",
    float | None,
    None,
    the="look in the heart widened by this much; .inf: in the crop; null: as the weights say",
)
@IO.Config(
    "threshold", float | None, None, the="probability from which something is calcium; null: the weights' own"
)
@IO.Config("exclude", bool, False, the="leave the calcium network out where nothing is found")
class ScreeningRunner(Module):
    """Say whether there may be coronary calcium. The models are loaded once."""

    weights: str
    localise: str
    heart_margin_mm: float | None
    threshold: float | None
    exclude: bool

    def task(self) -> None:
        """Screen every series.

        Raises:
            WeightsError: Weights are missing, altered or of an unknown kind.
        """
        with ConsoleCapture(self.config.logger):
            from ..models.screening import ScreeningModel

            self.set = resolve(self.weights, "screening")
            self.device = choose_device("auto")
            stage = Screen(
                model=ScreeningModel.load(self.set, self.device, threshold=self.threshold),
                weights=self.set,
                localise=self.localise,
                heart_margin_mm=self.heart_margin_mm,
                exclude=self.exclude,
            )
            self.stage = on_device(stage, self.device)
        self.log(f"device: {describe_device(self.device)}; weights: {self.set.name} {self.set.hash[:12]}")
        self.screen()

    @for_each_case
    @IO.Input("in_case", CASE, the="header facts of the series")
    @IO.Input("in_data", CT, the="CT, int16 HU")
    @IO.Output("out_data", "screening.nii.gz", SCREENED, data="in_data", the="possible calcium, 0 and 1")
    @IO.OutputData("calcium_possible", CalciumPossible, the="whether there may be calcium")
    def screen(
        self,
        instance: Instance,
        in_case: InstanceData,
        in_data: InstanceData,
        out_data: InstanceData,
        calcium_possible: CalciumPossible,
    ) -> None:
        """Screen one series."""
        path = Path(in_case.abspath)
        heart = heart_path(instance) if self.localise == "heart" else None
        case = self.stage(read_case(path, ct=Path(in_data.abspath), heart=heart))
        write_case(path, case)
        if case.stop is None:
            write_mask(Path(out_data.abspath), case.screened, case.volume)
        calcium_possible.value = report_values(case).get("calcium_possible")
