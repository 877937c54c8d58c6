"""What the CRD's schema and rules cannot say about a PDService: checked before anything is built from it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from tidewheel.api.accelerators import AcceleratorTable, UnknownAccelerator
from tidewheel.api.pdservice import LONGEST_NAME, ComputeRole, PDServiceSpec, PodRole
from tidewheel.api.reasons import Reason
from tidewheel.planning.observed import ObservedService

_QUANTITY = re.compile(r"(?P<number>[0-9.]+)(?P<unit>[A-Za-z]{0,2}|[eE][+-]?[0-9]+)")
_UNITS: Mapping[str, Decimal] = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{unit: Decimal(1000) ** power for power, unit in enumerate("kMGTPE", start=1)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", start=1)},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Objection:
    """Why nothing can be built from a spec."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    name: str
    spec: PDServiceSpec
    accelerators: AcceleratorTable

    @property
    def roles(self) -> tuple[tuple[str, PodRole], ...]:
        return (("prefill", self.spec.prefill), ("decode", self.spec.decode), ("gateway", self.spec.gateway))

    @property
    def compute_roles(self) -> tuple[tuple[str, ComputeRole], ...]:
        return (("prefill", self.spec.prefill), ("decode", self.spec.decode))


Check = Callable[[_Subject], Iterator[Objection]]


def buildable(seen: ObservedService, accelerators: AcceleratorTable) -> PDServiceSpec | Objection:
    """The spec if pods can be built from it, or the first thing that stands against it."""
    if seen.spec is None:
        return Objection(reason=Reason.INVALID_SPEC, message=seen.unreadable or "spec is missing")
    subject = _Subject(name=seen.name, spec=seen.spec, accelerators=accelerators)
    return next((said for check in _CHECKS for said in check(subject)), seen.spec)


def _name_fits(subject: _Subject) -> Iterator[Objection]:
    if (length := len(subject.name)) > LONGEST_NAME:
        yield _invalid(
            "metadata.name",
            f"{length} characters; use at most {LONGEST_NAME}, as pods are named after it",
        )


def _accelerators_are_known(subject: _Subject) -> Iterator[Objection]:
    for name, role in subject.compute_roles:
        try:
            subject.accelerators[role.accelerator]
        except UnknownAccelerator as unknown:
            yield Objection(reason=Reason.UNKNOWN_ACCELERATOR, message=f"spec.{name}: {unknown.args[0]}")


def _resources_make_sense(subject: _Subject) -> Iterator[Objection]:
    for name, role in subject.roles:
        for resource, limit in role.resources.limits.items():
            request = role.resources.requests.get(resource)
            try:
                exceeds = request is not None and quantity(request) > quantity(limit)
            except ValueError as error:
                yield _invalid(f"spec.{name}.resources", f"{resource}: {error}")
                continue
            if exceeds:
                yield _invalid(
                    f"spec.{name}.resources",
                    f"the request for {resource} ({request}) exceeds its limit ({limit}); "
                    "lower the one or raise the other",
                )


def _devices_are_asked_for_once(subject: _Subject) -> Iterator[Objection]:
    for name, role in subject.compute_roles:
        device = subject.accelerators[role.accelerator].resource
        for place, amounts in (("requests", role.resources.requests), ("limits", role.resources.limits)):
            if device is not None and device in amounts:
                yield _invalid(
                    f"spec.{name}.resources.{place}",
                    f"{device} follows from accelerator {role.accelerator!r}; "
                    f"set spec.{name}.devicesPerPod instead",
                )


def _templates_have_shape(subject: _Subject) -> Iterator[Objection]:
    for name, role in subject.roles:
        for path, fault in _faults_of(role.template or {}):
            yield _invalid(f"spec.{name}.template{path}", fault)


def _faults_of(template: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if unknown := sorted(set(template) - {"metadata", "spec"}):
        yield "", f"has {', '.join(unknown)}; a PodTemplateSpec has metadata and spec"
    for part in ("metadata", "spec"):
        if not isinstance(template.get(part, {}), dict):
            yield f".{part}", "must be an object"
            return
    for part in ("labels", "annotations"):
        if not isinstance((template.get("metadata") or {}).get(part) or {}, dict):
            yield f".metadata.{part}", "must be an object"
    spec = template.get("spec") or {}
    for part in ("containers", "initContainers", "volumes"):
        items = spec.get(part) or []
        if not isinstance(items, list):
            yield f".spec.{part}", "must be a list"
            continue
        for index, item in enumerate(items):
            if not isinstance(item, dict) or not isinstance(item.get("name"), str):
                yield f".spec.{part}[{index}]", "must be an object with a name"


_CHECKS: tuple[Check, ...] = (
    _name_fits,
    _accelerators_are_known,
    _resources_make_sense,
    _devices_are_asked_for_once,
    _templates_have_shape,
)


def _invalid(path: str, fault: str) -> Objection:
    return Objection(reason=Reason.INVALID_SPEC, message=f"{path}: {fault}")


def quantity(text: int | str) -> Decimal:
    """The value of a Kubernetes quantity such as `500m`, `2Gi` or `1e3`.

    Raises:
        ValueError: it is none.
    """
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        raise ValueError(f"{text!r} is no quantity")
    unit = match["unit"]
    if unit in _UNITS:
        return Decimal(match["number"]) * _UNITS[unit]
    return Decimal(match["number"]) * Decimal(10) ** int(unit[1:])
