"""MHub module: coronary calcium, by the patch 3D U-Net."""

# mhubio compares annotations with types, so none may be a string here; and it has no types:
# mypy: allow-subclassing-any, allow-untyped-decorators

from pathlib import Path

from mhubio.core import IO, Instance, InstanceData, Module
from mhubio.core.Logger import ConsoleCapture

from ..pipeline.chain import choose_device, describe_device, lowest_counted_hu, on_device
from ..pipeline.stages import FindCalcium
from ..weights import resolve
from .handover import (
    CALCIUM,
    CASE,
    CT,
    HEART,
    for_each_case,
    read_case,
    scoring_rule,
    write_case,
    write_mask,
)


@IO.Config("weights", str, "bundled", the="name in weights/manifest.json, or folder of a set of weights")
@IO.Config(
    "heart_margin_mm",
    float | None,
    None,
    the="look in the heart widened by this much only; .inf: in the whole crop; null: as the weights say",
)
@IO.Config(
    "peak_probability",
    float | None,
    None,
    the="count a lesion only if the network is somewhere as sure; 0.5: every one; null: as the weights say",
)
class DeepCACRunner(Module):
    """Segment the coronary calcium around the heart. The model is loaded once."""

    weights: str
    heart_margin_mm: float | None
    peak_probability: float | None

    def task(self) -> None:
        """Segment the calcium of every series.

        Raises:
            WeightsError: Weights are missing, altered or of an unknown kind.
        """
        with ConsoleCapture(self.config.logger):
            from ..models.calcium import CalciumModel

            self.set = resolve(self.weights, "calcium")
            self.device = choose_device("auto")
            stage = FindCalcium(
                model=CalciumModel.load(self.set, self.device),
                weights=self.set,
                heart_margin_mm=self.heart_margin_mm,
                peak_probability=self.peak_probability,
                lowest_hu=lowest_counted_hu(scoring_rule(self)),
            )
            self.stage = on_device(stage, self.device)
        self.log(f"device: {describe_device(self.device)}; weights: {self.set.name} {self.set.hash[:12]}")
        self.find_calcium()

    @for_each_case
    @IO.Input("in_case", CASE, the="header facts of the series")
    @IO.Input("in_data", CT, the="CT, int16 HU")
    @IO.Input("in_heart", HEART, the="heart, 0 and 1")
    @IO.Output("out_data", "calcium.nii.gz", CALCIUM, data="in_data", the="coronary calcium, 0 and 1")
    def find_calcium(
        self,
        instance: Instance,
        in_case: InstanceData,
        in_data: InstanceData,
        in_heart: InstanceData,
        out_data: InstanceData,
    ) -> None:
        """Segment the calcium of one series."""
        path = Path(in_case.abspath)
        case = self.stage(read_case(path, ct=Path(in_data.abspath), heart=Path(in_heart.abspath)))
        write_case(path, case)
        if case.stop is None:
            write_mask(Path(out_data.abspath), case.calcium, case.volume)
