"""MHub module: the CT as NIfTI in Hounsfield units."""

# mhubio compares annotations with types, so none may be a string here; and it has no types:
# mypy: allow-subclassing-any, allow-untyped-decorators

from pathlib import Path

from mhubio.core import IO, Instance, InstanceData, InstanceDataCollection, Module

from ..errors import WorkflowError
from ..imaging.files import write_image
from ..pipeline.facts import CT
from ..pipeline.reading import build_volume
from .handover import CASE, for_each_case, read_case, write_case


@IO.ConfigInput("in_datas", "dicom:mod=ct", the="DICOM series to convert")
@IO.Config("engine", str, "deepcac2", the="reader of the DICOM files; deepcac2's own is the only one")
@IO.Config("allow_multi_input", bool, False, the="accept instances with several series; one is converted")
@IO.Config("bundle_name", str, "nifti", the="folder of the converted file within the instance")
@IO.Config("converted_file_name", str, "[filename].nii.gz", the="name of the converted file")
@IO.Config("overwrite_existing_file", bool, False, the="convert again where the file is there already")
class NiftiConverter(Module):
    """Read the pixels, each slice with its own rescale, as the run in memory does.

    Takes the place of mhubio's converter, with its options.
    """

    engine: str
    allow_multi_input: bool
    bundle_name: str
    converted_file_name: str
    overwrite_existing_file: bool

    def task(self) -> None:
        """Convert every series.

        Raises:
            WorkflowError: `engine` is not ours.
        """
        if self.engine != "deepcac2":
            raise WorkflowError(f"NiftiConverter: engine must be 'deepcac2', not {self.engine!r}")
        self.convert()

    @for_each_case
    @IO.Input("in_case", CASE, the="header facts of the series")
    @IO.Inputs("in_datas", the="DICOM series")
    @IO.Outputs(
        "out_datas",
        path=IO.C("converted_file_name"),
        dtype="nifti",
        data="in_datas",
        bundle=IO.C("bundle_name"),
        the="CT, int16 HU",
    )
    def convert(
        self,
        instance: Instance,
        in_case: InstanceData,
        in_datas: InstanceDataCollection,
        out_datas: InstanceDataCollection,
    ) -> None:
        """Convert one series."""
        if len(in_datas) > 1 and not self.allow_multi_input:
            raise WorkflowError(
                f"NiftiConverter: {len(in_datas)} inputs match in_datas; narrow it, or set allow_multi_input"
            )
        path, target = Path(in_case.abspath), Path(out_datas.get(0).abspath)
        if target.exists() and not self.overwrite_existing_file:
            self.log(f"{target.name} is there already and is kept")
            return
        case = build_volume(read_case(path))
        write_case(path, case)
        if case.stop is None:
            write_image(target, case[CT].hu, case[CT].geometry)
