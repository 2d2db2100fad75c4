"""MHub module: the heart, by nnU-Net."""

# mhubio compares annotations with types, so none may be a string here; and it has no types:
# mypy: allow-subclassing-any, allow-untyped-decorators

from pathlib import Path

from mhubio.core import IO, Instance, InstanceData, Module
from mhubio.core.Logger import ConsoleCapture

from ..pipeline.chain import choose_device, describe_device
from ..pipeline.stages import FindHeart
from ..weights import resolve
from .handover import (
    CASE,
    CT,
    HEART,
    for_each_case,
    note_network,
    read_case,
    read_provenance,
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
            self.model = HeartModel.load(self.set, self.device)
        self.log(f"device: {describe_device(self.device)}; weights: {self.set.name} {self.set.hash[:12]}")
        self.find_heart()

    @IO.Instance()
    @for_each_case
    @IO.Input("in_case", CASE, the="header facts of the series")
    @IO.Input("in_data", CT, the="CT, int16 HU")
    @IO.Output("out_data", "heart.nii.gz", HEART, data="in_data", the="heart, 0 and 1")
    def find_heart(
        self, instance: Instance, in_case: InstanceData, in_data: InstanceData, out_data: InstanceData
    ) -> None:
        """Segment the heart of one series."""
        path = Path(in_case.abspath)
        provenance = read_provenance(path)
        stage = FindHeart(model=self.model, weights=self.set, allow=provenance["allowed_gates"])
        case = stage(read_case(path, ct=Path(in_data.abspath)))
        write_mask(Path(out_data.abspath), case.heart, case.volume)
        write_case(path, case)
        note_network(path, self.set, self.device)
