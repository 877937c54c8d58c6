"""Label and field selectors: how they are parsed, what they match, and how the API server words its refusals."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from tidewheel.local.apimachinery import names
from tidewheel.local.apimachinery.fields import BadRequest, FieldError, forbidden, invalid, required

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tidewheel.local.apimachinery.fields import Gvk, Manifest

_SPLIT: Final = re.compile(r"\s*(==|!=|[=!(),<>]|[^\s=!(),<>]+)")
_SYMBOLS: Final = frozenset({"==", "!=", "=", "!", "(", ")", ",", "<", ">"})
_METADATA_FIELDS: Final = ("metadata.name", "metadata.namespace")
_FIELDS: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("", "Event"): (
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ),
    ("", "Namespace"): ("status.phase",),
    ("", "Node"): ("spec.unschedulable",),
    ("", "Pod"): (
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ),
    ("", "ReplicationController"): ("status.replicas",),
    ("", "Secret"): ("type",),
    ("", "Service"): ("spec.clusterIP", "spec.type"),
    ("apps", "ReplicaSet"): ("status.replicas",),
    ("batch", "Job"): ("status.successful",),
}
_BOOLEAN_FIELDS: Final = frozenset({"spec.unschedulable", "spec.hostNetwork"})


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on a label: `In`, `NotIn`, `Exists`, `DoesNotExist`, `Gt` or `Lt`."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels meet the condition."""
        value = labels.get(self.key)
        match self.operator:
            case "In":
                return value is not None and value in self.values
            case "NotIn":
                return value is None or value not in self.values
            case "Exists":
                return value is not None
            case "DoesNotExist":
                return value is None
        try:
            number, bound = int(value or ""), int(self.values[0])
        except ValueError:
            return False
        return number > bound if self.operator == "Gt" else number < bound


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """Conditions that labels must all meet; without any it matches everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str] | None) -> bool:
        """Whether labels meet every condition."""
        have = labels or {}
        return all(requirement.matches(have) for requirement in self.requirements)

    @classmethod
    def from_object(cls, selector: Mapping[str, Any] | None) -> Self:
        """A selector from `matchLabels` and `matchExpressions`; None matches nothing in the API, here everything."""
        if not selector:
            return cls()
        equal = [
            Requirement(key, "In", (value,)) for key, value in (selector.get("matchLabels") or {}).items()
        ]
        rest = [
            Requirement(each.get("key", ""), each.get("operator", ""), tuple(each.get("values") or ()))
            for each in selector.get("matchExpressions") or ()
        ]
        return cls((*equal, *rest))


def selector_errors(selector: Mapping[str, Any], field: str) -> Iterator[FieldError]:
    """What is wrong with a selector object, as validation reports it."""
    for key, value in (selector.get("matchLabels") or {}).items():
        for text in names.qualified_name_complaints(key):
            yield invalid(f"{field}.matchLabels", key, text)
        for text in names.label_value_complaints(value):
            yield invalid(f"{field}.matchLabels", value, text)
    for index, each in enumerate(selector.get("matchExpressions") or ()):
        path = f"{field}.matchExpressions[{index}]"
        operator, values = each.get("operator", ""), each.get("values") or ()
        if operator in ("In", "NotIn"):
            if not values:
                yield required(f"{path}.values", "must be specified when `operator` is 'In' or 'NotIn'")
        elif operator in ("Exists", "DoesNotExist"):
            if values:
                yield forbidden(
                    f"{path}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                )
        else:
            yield invalid(f"{path}.operator", operator, "not a valid selector operator")
        for text in names.qualified_name_complaints(each.get("key", "")):
            yield invalid(f"{path}.key", each.get("key", ""), text)


def parse_label_selector(text: str) -> LabelSelector:
    """Parse the query form: `app=x,tier!=y,zone in (a,b),!gone`.

    Raises:
        BadRequest: the text is no selector.
    """
    parser = _Parser(text)
    requirements: list[Requirement] = []
    if parser.peek() == "":
        return LabelSelector()
    while True:
        requirements.append(parser.requirement())
        symbol = parser.take()
        if symbol == "":
            break
        if symbol != ",":
            raise BadRequest(
                f"unable to parse requirement: found '{symbol}', expected: ',' or 'end of string'"
            )
        if parser.peek() == "":
            raise BadRequest("unable to parse requirement: found '', expected: identifier after ','")
    for requirement in requirements:
        _check(requirement)
    return LabelSelector(tuple(sorted(requirements, key=lambda each: each.key)))


def _check(requirement: Requirement) -> None:
    for text in names.qualified_name_complaints(requirement.key):
        raise BadRequest(f'unable to parse requirement: <nil>: Invalid value: "{requirement.key}": {text}')
    for value in requirement.values:
        if requirement.operator in ("Gt", "Lt"):
            if not re.fullmatch(r"[+-]?\d+", value):
                text = "for 'Gt', 'Lt' operators, the value must be an integer"
                raise BadRequest(
                    f'unable to parse requirement: values[0][{requirement.key}]: Invalid value: "{value}": {text}'
                )
            continue
        for text in names.label_value_complaints(value):
            raise BadRequest(
                f'unable to parse requirement: values[0][{requirement.key}]: Invalid value: "{value}": {text}'
            )


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = _SPLIT.findall(text)
        self._next = 0

    def peek(self) -> str:
        return self._tokens[self._next] if self._next < len(self._tokens) else ""

    def take(self) -> str:
        symbol = self.peek()
        self._next += 1
        return symbol

    def requirement(self) -> Requirement:
        if self.peek() == "!":
            self.take()
            return Requirement(self._word("identifier"), "DoesNotExist")
        key = self._word("identifier")
        match self.peek():
            case "" | ",":
                return Requirement(key, "Exists")
            case "=" | "==":
                self.take()
                return Requirement(key, "In", (self._value(),))
            case "!=":
                self.take()
                return Requirement(key, "NotIn", (self._value(),))
            case ">" | "<" as comparison:
                self.take()
                return Requirement(key, "Gt" if comparison == ">" else "Lt", (self._word("identifier"),))
            case "in" | "notin" as operator:
                self.take()
                return Requirement(key, "In" if operator == "in" else "NotIn", self._values())
        expected = "in, notin, =, ==, !=, gt, lt"
        raise BadRequest(f"unable to parse requirement: found '{self.peek()}', expected: {expected}")

    def _word(self, expected: str) -> str:
        symbol = self.take()
        if symbol == "" or symbol in _SYMBOLS:
            raise BadRequest(f"unable to parse requirement: found '{symbol}', expected: {expected}")
        return symbol

    def _value(self) -> str:
        """A value after an equals sign, which may be empty."""
        return "" if self.peek() in ("", ",") else self._word("identifier")

    def _values(self) -> tuple[str, ...]:
        symbol = self.take()
        if symbol != "(":
            raise BadRequest(f"unable to parse requirement: found '{symbol}', expected: '('")
        values: list[str] = []
        while True:
            if self.peek() in (",", ")"):
                values.append("")
            else:
                values.append(self._word("identifier"))
            symbol = self.take()
            if symbol == ")":
                return tuple(sorted(set(values)))
            if symbol != ",":
                raise BadRequest(f"unable to parse requirement: found '{symbol}', expected: ',' or ')'")


@dataclass(frozen=True, slots=True)
class FieldSelector:
    """Conditions on single fields: path, whether it must be equal or unequal, and the value."""

    terms: tuple[tuple[str, bool, str], ...] = ()

    def matches(self, obj: Manifest) -> bool:
        """Whether an object meets every condition; an absent field counts as the empty string."""
        return all((_field(obj, path) == value) == is_equal for path, is_equal, value in self.terms)

    @property
    def name(self) -> str | None:
        """The one `metadata.name` that can match, or None when the selector does not ask for one."""
        return next(
            (value for path, is_equal, value in self.terms if is_equal and path == "metadata.name"), None
        )


def supported_fields(gvk: Gvk, selectable: Iterable[str] = ()) -> tuple[str, ...]:
    """The fields that a kind can be selected by; `selectable` are those that a CRD declares (`spec.color`)."""
    return (
        *_METADATA_FIELDS,
        *_FIELDS.get((gvk.group, gvk.kind), ()),
        *(each.removeprefix(".") for each in selectable),
    )


def parse_field_selector(text: str, supported: Iterable[str]) -> FieldSelector:
    """Parse the query form: `metadata.name=a,status.phase!=Running`.

    Raises:
        BadRequest: the text is no selector, or names a field that is not supported.
    """
    known = tuple(supported)
    terms: list[tuple[str, bool, str]] = []
    for part in re.split(r"(?<!\\),", text):
        if not part:
            continue
        found = re.match(r"(.*?)(!=|==|=)(.*)", part, re.DOTALL)
        if found is None:
            raise BadRequest(f"invalid selector: '{text}'; can't understand '{part}'")
        path, operator, value = found.groups()
        if path not in known:
            if len(known) > len(_METADATA_FIELDS):
                raise BadRequest(f"field label not supported: {path}")
            listed = ", ".join(f'"{each}"' for each in known)
            raise BadRequest(f'"{path}" is not a known field selector: only {listed}')
        terms.append((path, operator != "!=", re.sub(r"\\([,=\\])", r"\1", value)))
    return FieldSelector(tuple(terms))


def _field(obj: Manifest, path: str) -> str:
    value: Any = obj
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if path == "source":
        return str((value or {}).get("component", "")) or str(obj.get("reportingComponent", ""))
    if value is None:
        return "false" if path in _BOOLEAN_FIELDS else ""
    return str(value).lower() if isinstance(value, bool) else str(value)
