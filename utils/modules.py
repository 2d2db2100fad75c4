"""The MHub modules of steps that compute or write, made from what step and writers say of themselves."""

# mhubio has no types:
# mypy: allow-subclassing-any, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from inspect import Parameter, Signature
from itertools import chain
from pathlib import Path
from typing import Any, get_type_hints

from mhubio.core import IO, Instance, InstanceData, Module, ValueOutput
from mhubio.core.Logger import ConsoleCapture

from ..errors import WorkflowError
from ..outputs.images import write_fact
from ..pipeline.case import Case
from ..pipeline.chain import build_stage, choose_device, counted_from, describe_device, provenance_of
from ..pipeline.facts import CT
from ..pipeline.step import Context, Step, Value, one_of_each, steps
from ..pipeline.writer import Writer, of_module, queries, written
from ..system.codec import from_plain
from ..weights import resolve
from .handover import CASE, file_of, files_of, for_each_case, read_case, workflow_of, write_case


def computing(module: str) -> type[Module]:
    """The MHub module of a step that computes.

    The network, if there is one, is loaded once. What a series has so far comes from ``case.json`` and the
    images that the step reads; what the step adds goes there.
    """
    step = steps()[module]
    images = [fact for fact in step.writes if fact.image is not None]

    def task(self: Module) -> None:
        options = options_of(step, self)
        with ConsoleCapture(self.config.logger):
            device = choose_device("auto") if step.role is not None else None
            self.needs = [*chain.from_iterable(step.needs(options)), *step.uses]
            self.stage = build_stage(module, options, replace(context_of(self), device=device))
        if device is not None and step.role is not None:
            weights = resolve(options.weights, step.role)
            self.log(f"device: {describe_device(device)}; weights: {weights.name} {weights.hash[:12]}")
        self.each()

    def each(
        self: Module, instance: Instance, in_case: InstanceData, in_data: InstanceData, **out: Any
    ) -> None:
        path = Path(in_case.abspath)
        case = self.stage(read_case(path, files_of(instance, self.needs)))
        write_case(path, case)
        for fact in images:
            if case.stop is None and fact in case:
                write_fact(Path(out[fact.name].abspath), fact, case)
        for value in step.values:
            out[value.name].value = value.of(case)

    wrapped: Callable[..., None] = each
    records = {value.name: _record(value) for value in step.values}
    _declare(each, ["in_data", *(fact.name for fact in images)], records)
    for name, record in records.items():
        wrapped = IO.OutputData(name, record, the=record.description)(wrapped)
    for fact in images:
        assert fact.image is not None
        name, query = fact.image.name, fact.image.query
        wrapped = IO.Output(fact.name, name, query, data="in_data", the=fact.meaning)(wrapped)
    assert CT.image is not None
    wrapped = IO.Input("in_data", CT.image.query, the="CT, int16 HU")(wrapped)
    return _module(step, task, wrapped)


def writing(module: str) -> type[Module]:
    """The MHub module of a step that writes files: those that modules hand on (`Writer.query`)."""
    step = steps()[module]
    files = [writer for writer in of_module(module) if writer.query]

    def task(self: Module) -> None:
        context = context_of(self)
        self.options = options_of(step, self)
        self.context = replace(context, provenance=provenance_of(context.workflow))
        self.each()

    def each(self: Module, instance: Instance, in_case: InstanceData, **out: Any) -> None:
        case = case_of(instance, Path(in_case.abspath), files)
        written(case, files, lambda w: Path(out[w.name].abspath), self.options, self.context)

    wrapped: Callable[..., None] = each
    _declare(each, [writer.name for writer in files], {})
    for writer in files:
        name = IO.C(writer.option) if writer.option else writer.file
        wrapped = IO.Output(writer.name, name, writer.query, the=writer.name)(wrapped)
    return _module(step, task, wrapped)


def options_of(step: Step[Any], module: Module) -> Any:
    """The options of a step, from mhubio's configuration of its module.

    Raises:
        WorkflowError: A value is none that the step knows.
    """
    given = {field.name: getattr(module, field.name) for field in fields(step.options)}
    return from_plain(step.options, given, where=step.module, error=WorkflowError, key="option")


def context_of(module: Module) -> Context:
    """What a stage is built with, from mhubio's configuration; without a device."""
    workflow = workflow_of(module.config)
    return Context(
        workflow=workflow,
        output=Path(),
        device=None,
        allow=frozenset(workflow.options("DicomImporter").allow),
        keep=frozenset(),
        provenance={},
        counted_from=counted_from(workflow),
    )


def case_of(instance: Instance, path: Path, files: Iterable[Writer]) -> Case:
    """A case with the images that some writers need, and the outputs that modules before have written."""
    images = {fact for writer in files for need in one_of_each(writer.needs) for fact in need}
    images |= {fact for writer in files for fact in writer.uses}
    outputs = {name: file_of(instance, query) for query, name in queries().items()}
    found = {name: file for name, file in outputs.items() if file is not None}
    return replace(read_case(path, files_of(instance, images)), outputs=found)


def _module(step: Step[Any], task: Callable[..., None], each: Callable[..., None]) -> type[Module]:
    """The class: its configuration is the step's options."""
    hints = get_type_hints(step.options)
    own: dict[str, Any] = {
        "__doc__": step.options.__doc__,
        "__module__": f"{__package__}.{step.module}",
        "__annotations__": dict(hints),
        "task": task,
        "each": for_each_case(IO.Input("in_case", CASE, the="what is known of the series")(each)),
    }
    made: type[Module] = type(step.module, (Module,), own)
    defaults = step.options()
    for field in fields(step.options):
        default, name = getattr(defaults, field.name), field.name
        made = IO.Config(name, hints[name], default, the=f"see {step.options.__name__}")(made)
    return made


def _record(value: Value) -> type[ValueOutput]:
    """mhubio's record of a value."""
    made: type[ValueOutput] = type(
        "".join(word.capitalize() for word in value.name.split("_")),
        (ValueOutput,),
        {"__doc__": value.meaning},
    )
    for decorate in (
        ValueOutput.Name(value.name),
        ValueOutput.Label(value.title),
        ValueOutput.Type(value.kind),
        ValueOutput.Description(value.meaning),
    ):
        made = decorate(made)
    return made


def _declare(each: Any, names: list[str], records: dict[str, type[ValueOutput]]) -> None:
    """mhubio looks for each input and output among the parameters of a task."""
    kinds = {"self": Module, "instance": Instance, "in_case": InstanceData}
    kinds |= dict.fromkeys(names, InstanceData) | records
    each.__name__ = each.__qualname__ = "each"
    each.__signature__ = Signature(
        [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=kind) for name, kind in kinds.items()]
    )
