"""`x-kubernetes-validations`: compiles the CEL rules of a schema once and evaluates them on objects."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, cast

import cel

from tidewheel.local.apimachinery import formats
from tidewheel.local.apimachinery.cel_library import knows_function, new_context
from tidewheel.local.apimachinery.fields import FieldError, Reason, shown
from tidewheel.local.apimachinery.fieldwalks import DuplicateItem, item_element

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tidewheel.local.apimachinery.schema import Schema

_KEYWORDS: Final = frozenset(
    [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    ]
)
_SYMBOLS: Final = {"__": "__underscores__", ".": "__dot__", "-": "__dash__", "/": "__slash__"}
_ROOT_METADATA: Final = ("name", "generateName")
_STRING_LITERAL: Final = re.compile(r"[rRbB]{0,2}(\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*')")
_CHAIN: Final = re.compile(r"(?<![\w.])(self|oldSelf)((?:\.\w+)+)(\s*\()?")
_MISSING: Final = object()


class UncompilableRule(ValueError):
    """A CEL expression that cannot be compiled; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One compiled entry of `x-kubernetes-validations`."""

    source: str
    program: Any
    message: str
    message_program: Any
    reason: Reason
    field_path: str
    uses_old: bool
    old_is_optional: bool


def escape(name: str) -> str | None:
    """The name under which CEL sees a property; None when it cannot see it."""
    if name in _KEYWORDS:
        return f"__{name}__"
    escaped = re.sub(r"__|[.\-/]", lambda found: _SYMBOLS[found[0]], name)
    return escaped if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", escaped) else None


def compile_rule(raw: Mapping[str, Any], schema: Schema) -> Rule:
    """Compile one rule.

    Raises:
        UncompilableRule: the syntax is wrong, or the rule uses a field, a variable or a function that is not there.
    """
    source = raw.get("rule", "")
    program = _compile(source, schema)
    message_source = raw.get("messageExpression") or ""
    message_program = _compile(message_source, schema) if message_source else None
    return Rule(
        source=source,
        program=program,
        message=raw.get("message") or f"failed rule: {source.strip()}",
        message_program=message_program,
        reason=raw.get("reason") or "FieldValueInvalid",
        field_path=raw.get("fieldPath") or "",
        uses_old="oldSelf" in program.variables(),
        old_is_optional=bool(raw.get("optionalOldSelf")),
    )


def _compile(source: str, schema: Schema) -> Any:
    try:
        program = cel.compile(source)
    except ValueError as error:
        text = str(error).partition(": ERROR: ")[2] or str(error)
        hint = ""
        if "unsupported syntax" in text:
            hint = " (this server's CEL has no optional syntax; write has(self.a) ? ... : ...)"
        raise UncompilableRule(f"compilation failed: ERROR: {text.strip()}{hint}") from error
    bound = set(re.findall(r"\.\s*(?:all|exists|exists_one|map|filter)\s*\(\s*(\w+)\s*,", source))
    names = {"self", "oldSelf"} | bound
    namespaces = {
        "math",
        "sets",
        "base64",
        "format",
        "ip",
        "optional",
        "strings",
        "lists",
        "int",
        "string",
        "bool",
    }
    types = {"double", "uint", "bytes", "list", "map", "null_type", "type", "timestamp", "duration"}
    for name in program.variables():
        if name not in names | namespaces | types:
            raise UncompilableRule(
                f"compilation failed: ERROR: undeclared reference to '{name}' (in container '')"
            )
    for name in program.functions():
        if not knows_function(name):
            raise UncompilableRule(
                f"compilation failed: ERROR: undeclared reference to '{name}' (in container '')"
            )
    plain = _STRING_LITERAL.sub("''", source)
    for found in _CHAIN.finditer(plain):
        _refuse_unknown_fields(found[2].split(".")[1:], bool(found[3]), schema)
    return program


def _refuse_unknown_fields(chain: list[str], ends_with_call: bool, schema: Schema) -> None:
    here: Schema | None = schema
    for name in chain[:-1] if ends_with_call else chain:
        if here is None or here.type != "object" or here.preserves_unknown:
            return
        if here.additional is not None:
            here = here.additional
            continue
        known = {escape(key): prop for key, prop in here.properties.items()}
        if name not in known:
            seen_as = escape(name)
            hint = f" (CEL sees this property as {seen_as})" if seen_as in known else ""
            raise UncompilableRule(f"compilation failed: ERROR: undefined field '{name}'{hint}")
        here = known[name]


@cache
def rules_of(schema: Schema) -> tuple[Rule, ...]:
    """The compiled rules of one node.

    Raises:
        UncompilableRule: a rule cannot be compiled; the CRD should have been refused.
    """
    return tuple(compile_rule(raw, schema) for raw in schema.raw.get("x-kubernetes-validations") or ())


@cache
def _has_rules(schema: Schema) -> bool:
    """Whether there are rules at or below a node of a custom resource's schema."""
    return bool(schema.raw.get("x-kubernetes-validations")) or any(
        _has_rules(each) for each in _below(schema)
    )


@cache
def _has_transitions(schema: Schema) -> bool:
    """Whether a rule at or below a node looks at the old value; such rules run even when nothing changed."""
    return any(rule.uses_old for rule in rules_of(schema)) or any(
        _has_transitions(each) for each in _below(schema)
    )


def _below(schema: Schema) -> list[Schema]:
    """The nodes directly below one; built-in definitions, such as the metadata, are left out, for they have no rules."""
    nodes = [*schema.properties.values(), schema.items, schema.additional]
    return [node for node in nodes if node is not None and not node.name]


def rule_errors(obj: Any, schema: Schema, old: Any = None) -> list[FieldError]:
    """Evaluate every rule on an object; `old` is the object before an update, None on create."""
    return list(_walk(obj, schema, "", _MISSING if old is None else old))


def _walk(value: Any, schema: Schema, path: str, old: Any) -> Iterator[FieldError]:
    if value is None or schema.name or not _has_rules(schema):
        return
    if old is not _MISSING and old == value and not _has_transitions(schema):
        return  # what did not change was accepted before
    rules = rules_of(schema)
    if rules:
        yield from _evaluate(rules, value, schema, path, old)
    if isinstance(value, dict):
        before = old if isinstance(old, dict) else {}
        for key, child in value.items():
            known = schema.properties.get(key)
            if known is not None:
                yield from _walk(child, known, f"{path}.{key}" if path else key, before.get(key, _MISSING))
            elif schema.additional is not None:
                yield from _walk(child, schema.additional, f"{path}[{key}]", before.get(key, _MISSING))
    elif isinstance(value, list) and schema.items is not None:
        before_by_key = _by_key(old, schema)
        for index, child in enumerate(value):
            previous = before_by_key.get(_key(child, schema), _MISSING) if before_by_key else _MISSING
            yield from _walk(child, schema.items, f"{path}[{index}]", previous)


def _by_key(old: Any, schema: Schema) -> dict[str, Any]:
    """The old items of a keyed list; items of other lists cannot be told apart between two versions."""
    if not isinstance(old, list) or schema.list_type != "map":
        return {}
    return {_key(item, schema): item for item in old}


def _key(item: Any, schema: Schema) -> str:
    try:
        return item_element(item, schema)
    except DuplicateItem:
        return ""


def _evaluate(
    rules: tuple[Rule, ...], value: Any, schema: Schema, path: str, old: Any
) -> Iterator[FieldError]:
    is_unchanged = old is not _MISSING and old == value
    variables: dict[str, Any] | None = None
    for rule in rules:
        if is_unchanged and not rule.uses_old:
            continue  # a rule that came later must not block updates of what it does not touch
        if rule.uses_old and old is _MISSING and not rule.old_is_optional:
            continue
        if variables is None:
            is_root = path == ""
            variables = {"self": _seen(value, schema, is_root=is_root)}
            if old is not _MISSING:
                variables["oldSelf"] = _seen(old, schema, is_root=is_root)
        yield from _apply(rule, variables, value, path)


def _apply(rule: Rule, variables: dict[str, Any], value: Any, path: str) -> Iterator[FieldError]:
    context = _context()
    before = variables.get("oldSelf", _MISSING)
    context.add_variable("self", variables["self"])
    if rule.old_is_optional:
        context.add_variable(
            "oldSelf", cel.OptionalValue.none() if before is _MISSING else cel.OptionalValue.of(before)
        )
    elif before is not _MISSING:
        context.add_variable("oldSelf", before)
    where = path + rule.field_path if path else rule.field_path.removeprefix(".")
    printed = "" if isinstance(value, dict | list) else f"{shown(value)}: "
    try:
        holds = rule.program.execute(context)
    except Exception as error:  # noqa: BLE001 - the engine raises KeyError, TypeError, RuntimeError and more
        text = f"Invalid value: {printed}rule: {rule.source}: evaluation failed: {_reason_of(error)}"
        yield FieldError(where or "<nil>", "FieldValueInvalid", text)
        return
    if holds is True:
        return
    message = rule.message
    if rule.message_program is not None:
        try:
            said = rule.message_program.execute(context)
        except Exception:  # noqa: BLE001 - then the fixed message stands, as in kube-apiserver
            said = ""
        if isinstance(said, str) and said.strip() and "\n" not in said:
            message = said.strip()
    yield FieldError(where or "<nil>", rule.reason, _worded(rule.reason, printed, message))


def _worded(reason: Reason, printed: str, message: str) -> str:
    match reason:
        case "FieldValueRequired":
            return f"Required value: {message}"
        case "FieldValueForbidden":
            return f"Forbidden: {message}"
        case "FieldValueDuplicate":
            return f"Duplicate value: {printed.removesuffix(': ') or message}"
    return f"Invalid value: {printed}{message}"


def _reason_of(error: Exception) -> str:
    return f"no such key: {error.args[0]}" if isinstance(error, KeyError) else str(error)


@cache
def _context() -> Any:
    return new_context()


@cache
def _needs_translation(schema: Schema) -> bool:
    """Whether CEL sees values of this node otherwise than JSON does: other names, times, bytes, real numbers."""
    if schema.name:
        return False
    if schema.type == "number" or schema.raw.get("format") in ("date-time", "date", "duration", "byte"):
        return True
    if any(escape(key) != key for key in schema.properties):
        return True
    return schema.preserves_unknown or any(_needs_translation(each) for each in _below(schema))


def _seen(value: Any, schema: Schema, *, is_root: bool) -> Any:
    """A value as CEL sees it."""
    if is_root:
        metadata = value.get("metadata") or {}
        shown_metadata = {key: metadata[key] for key in _ROOT_METADATA if key in metadata}
        rest = {key: child for key, child in value.items() if key != "metadata"}
        return {**_translated(rest, schema), "metadata": shown_metadata}
    return _translated(value, schema)


def _translated(value: Any, schema: Schema) -> Any:
    if value is None or not _needs_translation(schema):
        return value
    if isinstance(value, dict):
        if schema.additional is not None:
            return {key: _translated(child, schema.additional) for key, child in value.items()}
        return {
            cast("str", escape(key)): _translated(value[key], prop)
            for key, prop in schema.properties.items()
            if key in value and escape(key) is not None
        }
    if isinstance(value, list):
        items = schema.items
        return value if items is None else [_translated(item, items) for item in value]
    if isinstance(value, int) and schema.type == "number" and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        match schema.raw.get("format"):
            case "date-time":
                return formats.parse_time(value)
            case "date":
                return formats.parse_time(f"{value}T00:00:00Z")
            case "duration":
                return formats.parse_duration(value)
            case "byte":
                return base64.b64decode(value)
    return value
