"""MHub module: the heart, by nnU-Net."""

# mhubio compares annotations with types, so none may be a string here; and it has no types:
# mypy: allow-subclassing-any, allow-untyped-decorators

from pathlib import Path

from mhubio.core import IO, Instance, InstanceData, Module
from mhubio.core.Logger import ConsoleCapture

from ..pipeline.chain import choose_device, describe_device, on_device
from ..pipeline.stages import FindHeart
from ..weights import resolve
from .handover import (
    CASE,
    CT,
    HEART,
    for_each_case,
    read_case,
    workflow_of,
    write_case,
    write_mask,
)


@IO.Config("weights", str, "bundled", the="name in weights/manifest.json, or folder of a set of weights")
class HeartRunner(Module):
    """Segment the heart and apply the quality gates that look at it. The model is loaded once."""

    weights: str

    def task(self) -> None:
        """Segment the heart of every series.

        Raises:
            WeightsError: Weights are missing, altered or of an unknown kind.
        """
        with ConsoleCapture(self.config.logger):
            from ..models.heart import HeartModel

            self.set = resolve(self.weights, "heart")
            self.device = choose_device("auto")
            model = HeartModel.load(self.set, self.device)
            allow = workflow_of(self.config).options("DicomImporter").allow
            self.stage = on_device(FindHeart(model=model, weights=self.set, allow=allow), self.device)
        self.log(f"device: {describe_device(self.device)}; weights: {self.set.name} {self.set.hash[:12]}")
        self.find_heart()

    @for_each_case
    @IO.Input("in_case", CASE, the="header facts of the series")
    @IO.Input("in_data", CT, the="CT, int16 HU")
    @IO.Output("out_data", "heart.nii.gz", HEART, data="in_data", the="heart, 0 and 1")
    def find_heart(
        self, instance: Instance, in_case: InstanceData, in_data: InstanceData, out_data: InstanceData
    ) -> None:
        """Segment the heart of one series."""
        path = Path(in_case.abspath)
        case = self.stage(read_case(path, ct=Path(in_data.abspath)))
        write_case(path, case)
        if case.stop is None:
            write_mask(Path(out_data.abspath), case.heart, case.volume)
