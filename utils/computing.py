"""The MHub modules of the steps that compute, made from what the step says of itself."""

# mhubio has no types:
# mypy: allow-subclassing-any, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from inspect import Parameter, Signature
from itertools import chain
from pathlib import Path
from typing import Any, get_type_hints

from mhubio.core import IO, Instance, InstanceData, Module, ValueOutput
from mhubio.core.Logger import ConsoleCapture

from ..imaging.files import write_image
from ..pipeline.case import Fact
from ..pipeline.chain import build_stage, choose_device, counted_from, describe_device
from ..pipeline.facts import CT
from ..pipeline.step import Context, Value, steps
from ..weights import resolve
from .handover import CASE, files_of, for_each_case, read_case, workflow_of, write_case


def computing(module: str) -> type[Module]:
    """The MHub module of a step: its options, images and values are mhubio's configuration and data.

    The network, if there is one, is loaded once. What a series has so far comes from ``case.json`` and the
    images that the step reads; what the step adds goes there.
    """
    step = steps()[module]
    records = {value.name: _record(value) for value in step.values}
    images = [fact for fact in step.writes if fact.image is not None]
    hints = get_type_hints(step.options)

    def task(self: Module) -> None:
        options = step.options(**{f.name: getattr(self, f.name) for f in fields(step.options)})
        workflow = workflow_of(self.config)
        with ConsoleCapture(self.config.logger):
            device = choose_device("auto") if step.role is not None else None
            context = Context(
                workflow=workflow,
                output=Path(),
                device=device,
                allow=frozenset(workflow.options("DicomImporter").allow),
                keep=frozenset(),
                provenance={},
                counted_from=counted_from(workflow),
            )
            self.needs = [*chain.from_iterable(step.needs(options)), *step.uses]
            self.stage = build_stage(module, options, context)
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
                write_image(Path(out[fact.name].abspath), case[fact], case[CT].geometry)
        for value in step.values:
            out[value.name].value = value.of(case)

    each.__signature__ = _signature(images, records)  # type: ignore[attr-defined]
    each.__name__ = each.__qualname__ = "each"
    wrapped: Callable[..., None] = each
    for name, record in records.items():
        wrapped = IO.OutputData(name, record, the=record.description)(wrapped)
    for fact in images:
        assert fact.image is not None
        name, query = fact.image.name, fact.image.query
        wrapped = IO.Output(fact.name, name, query, data="in_data", the=fact.meaning)(wrapped)
    assert CT.image is not None
    wrapped = IO.Input("in_data", CT.image.query, the="CT, int16 HU")(wrapped)
    wrapped = IO.Input("in_case", CASE, the="what is known of the series")(wrapped)
    own: dict[str, Any] = {
        "__doc__": step.options.__doc__,
        "__module__": f"{__package__}.{module}",
        "__annotations__": dict(hints),
        "task": task,
        "each": for_each_case(wrapped),
    }
    made: type[Module] = type(module, (Module,), own)
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
        ValueOutput.Label(value.label),
        ValueOutput.Type(value.kind),
        ValueOutput.Description(value.meaning),
    ):
        made = decorate(made)
    return made


def _signature(images: list[Fact[Any]], records: dict[str, type[ValueOutput]]) -> Signature:
    """mhubio looks for each input and output among the parameters of a task."""
    kinds = {"self": Module, "instance": Instance, "in_case": InstanceData, "in_data": InstanceData}
    kinds |= {fact.name: InstanceData for fact in images} | records
    return Signature(
        [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=kind) for name, kind in kinds.items()]
    )
