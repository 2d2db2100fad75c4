"""MHub module: heart and calcium as DICOM SEG."""

# mhubio compares annotations with types, so none may be a string here; and it has no types:
# mypy: allow-subclassing-any, allow-untyped-decorators

from pathlib import Path

from mhubio.core import IO, Instance, InstanceData, Module

from .. import __version__
from ..dicom import write_segmentation
from ..errors import WorkflowError
from ..pipeline.facts import CALCIUM, HEART, POSSIBLE_CALCIUM
from .handover import CASE, SEGMENTATION, files_of, for_each_case, read_case, read_geometry


@IO.Config("converted_file_name", str, "cac.seg.dcm", the="name of the DICOM SEG")
@IO.Config("model_name", str, "deepcac2", the="name of the algorithm in the DICOM SEG")
class DSegConverter(Module):
    """Write one DICOM SEG with the segments heart and coronary calcium, on the CT's own frames.

    Unlike mhubio's ``DsegConverter`` it needs no dcmqi and writes a valid file when no calcium was found.
    """

    converted_file_name: str
    model_name: str

    @for_each_case
    @IO.Input("in_case", CASE, the="header facts of the series")
    @IO.Output("out_data", IO.C("converted_file_name"), SEGMENTATION, the="DICOM SEG")
    def task(
        self,
        instance: Instance,
        in_case: InstanceData,
        out_data: InstanceData,
    ) -> None:
        """Write the SEG of one series: the calcium network's, or where there is none, the exclusion's.

        Raises:
            WorkflowError: Neither has run.
        """
        path = Path(in_case.abspath)
        files = files_of(instance, (HEART, CALCIUM, POSSIBLE_CALCIUM))
        case, geometry = read_case(path, files), read_geometry(path)
        if CALCIUM not in case and POSSIBLE_CALCIUM not in case:
            raise WorkflowError("DSegConverter needs DeepCACRunner or ScreeningRunner before it")
        if geometry is None:
            raise TypeError("the SEG needs the CT")
        write_segmentation(
            Path(out_data.abspath),
            series=case.series,
            geometry=geometry,
            heart=case[HEART],
            calcium=case[CALCIUM if CALCIUM in case else POSSIBLE_CALCIUM],
            algorithm_name=self.model_name,
            algorithm_version=__version__,
        )
