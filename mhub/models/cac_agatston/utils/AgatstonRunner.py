"""Agatston score of a chest CT, by deepcac2 0.1.0, which is called as a program in its own environment."""

from mhubio.core import IO, ClassOutput, Instance, InstanceData, Module, ValueOutput


@ValueOutput.Name("agatston_score")
@ValueOutput.Label("Agatston Score")
@ValueOutput.Type(float)
@ValueOutput.Description("Agatston score of the coronary calcium.")
class AgatstonScore(ValueOutput):
    pass


@ClassOutput.Name("risk_group")
@ClassOutput.Label("Risk Group")
@ClassOutput.Description("Group of the Agatston score.")
@ClassOutput.Class(0, "very low", the="score 0")
@ClassOutput.Class(1, "low", the="above 0, up to 100")
@ClassOutput.Class(2, "moderate", the="above 100, up to 300")
@ClassOutput.Class(3, "high", the="above 300")
class RiskGroup(ClassOutput):
    pass


@ValueOutput.Name("status")
@ValueOutput.Label("Status")
@ValueOutput.Type(str)
@ValueOutput.Description("scored, rejected (by a quality gate) or failed.")
class Status(ValueOutput):
    pass


@ValueOutput.Name("reason")
@ValueOutput.Label("Reason")
@ValueOutput.Type(str)
@ValueOutput.Description("Why a series has no score; empty where it has one.")
class Reason(ValueOutput):
    pass


@IO.ConfigInput("ct", "dicom:mod=ct", the="the chest CT: DICOM, or NRRD where 3D Slicer hands it over")
@IO.Config("program", str, "/app/.venv-deepcac2/bin/deepcac2", the="the program that is called")
@IO.Config("rule", str, "agatston", the="the scoring rule, one of 'deepcac2 inspect --rules'")
@IO.Config("allow", list, [], the="quality gates that let a scan pass, see 'deepcac2 inspect --gates'")
class AgatstonRunner(Module):
    """Heart, coronary calcium, score and risk group of one series; a rejected one has only a reason."""

    program: str
    rule: str
    allow: list

    @IO.Instance()
    @IO.Input("ct", the="chest CT without contrast agent")
    @IO.Output("heart", "heart.nii.gz", "nifti:mod=seg:model=cac_agatston:roi=HEART", the="heart")
    @IO.Output(
        "calcium",
        "calcium.nii.gz",
        "nifti:mod=seg:model=cac_agatston:roi=CORONARY_ARTERY+PATHOLOGIC_CALCIFICATION",
        the="coronary calcium",
    )
    @IO.Output("details", "details.json", "json:mod=details", the="all that is known of the result")
    @IO.OutputData("score", AgatstonScore, the="Agatston score of the coronary calcium.")
    @IO.OutputData("group", RiskGroup, the="Group of the Agatston score.")
    @IO.OutputData("status", Status, the="scored, rejected (by a quality gate) or failed.")
    @IO.OutputData("reason", Reason, the="Why a series has no score; empty where it has one.")
    def task(
        self,
        instance: Instance,
        ct: InstanceData,
        heart: InstanceData,
        calcium: InstanceData,
        details: InstanceData,
        score: AgatstonScore,
        group: RiskGroup,
        status: Status,
        reason: Reason,
    ) -> None:
        import json
        import os
        import shutil
        import tempfile
        from pathlib import Path

        if shutil.which(self.program) is None:
            raise FileNotFoundError(f"{self.program} is not here; set modules.AgatstonRunner.program")
        # The program has an environment of its own: what the image puts on Python's path is not for it.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with tempfile.TemporaryDirectory() as folder:
            command = [self.program, "run", ct.abspath, folder, "--keep", "nifti", "--quiet"]
            command += ["--rule", self.rule]
            for code in self.allow:
                command += ["--allow", code]
            self.subprocess(command, text=True, env=environment)
            found = list(Path(folder).rglob("details.json"))
            if len(found) != 1:
                raise RuntimeError(f"{len(found)} results instead of one; the log has what the program said")
            result = json.loads(found[0].read_text(encoding="utf-8"))
            shutil.copyfile(found[0], details.abspath)
            status.value, reason.value = result["status"], result.get("reason") or ""
            scored = result["status"] == "scored"
            score.value = round(float(result["score"]["total"]), 4) if scored else None
            group.value = result["score"]["risk_group"] if scored else None
            if not scored:
                self.log(f"{status.value}: {reason.value}", level="WARNING")
                return
            for name, image in (("heart", heart), ("calcium", calcium)):
                shutil.copyfile(found[0].with_name(f"{name}.nii.gz"), image.abspath)
