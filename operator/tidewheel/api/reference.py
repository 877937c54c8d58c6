"""The reference pages of a kind, in Markdown, from its schema and the table of reasons."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tidewheel.api.crd import schema_of
from tidewheel.api.model import CustomResource
from tidewheel.api.reasons import REASON_HELP

_GENERATED = "<!-- Written by `tidewheel docs` from the API models; change those. -->\n"


def reference_page(kind: type[CustomResource], introduction: str) -> str:
    """Every field of `kind` with type, default, bounds and meaning, and the rules between fields."""
    schema = schema_of(kind)
    parts = [_GENERATED, f"# {kind.__name__} reference\n", introduction.strip() + "\n"]
    for part in ("spec", "status"):
        parts.append(f"## {part}\n")
        parts.append(_table(schema["properties"][part], part))
    parts.append("## Rules between fields\n\nThe API server checks these at admission.\n")
    parts += [f"- `{path}`: {message}" for path, message in _rules(schema, kind.__name__)]
    parts.append("\n## kubectl columns\n\n| column | shows | wide only |\n|---|---|---|")
    parts += [
        f"| {column.name} | {column.description} | {'yes' if column.priority else ''} |"
        for column in kind.printer_columns
    ]
    return "\n".join(parts) + "\n"


def reasons_page() -> str:
    """Every reason a condition can give, what it means and what to do."""
    rows = [f"| `{reason.value}` | {text.means} | {text.do} |" for reason, text in REASON_HELP.items()]
    return "\n".join(
        [
            _GENERATED,
            "# Condition reasons\n",
            "What `kubectl get pds` shows under Reason, and what a condition's `reason` can be.\n",
            "| reason | what it means | what to do |\n|---|---|---|",
            *rows,
            "",
        ]
    )


def _table(schema: dict[str, Any], root: str) -> str:
    lines = ["| field | type | default | bounds | meaning |", "|---|---|---|---|---|"]
    for path, node, is_required in _fields(schema, root):
        default = "required" if is_required else _code(node["default"]) if "default" in node else ""
        description = str(node.get("description", "")).replace("|", "\\|")
        lines.append(f"| `{path}` | {_type(node)} | {default} | {_bounds(node)} | {description} |")
    return "\n".join(lines) + "\n"


def _fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
    required = schema.get("required", ())
    for name, node in schema.get("properties", {}).items():
        child = f"{path}.{name}"
        yield child, node, name in required
        if node.get("type") == "array":
            yield from _fields(node["items"], f"{child}[]")
        else:
            yield from _fields(node, child)


def _rules(schema: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    for rule in schema.get("x-kubernetes-validations", ()):
        yield path, rule["message"]
    for name, node in schema.get("properties", {}).items():
        yield from _rules(node, name if path[0].isupper() else f"{path}.{name}")


def _type(node: dict[str, Any]) -> str:
    if node.get("x-kubernetes-int-or-string"):
        return "quantity"
    match node.get("type"):
        case "array":
            return f"list of {_type(node['items'])}"
        case "object" if "additionalProperties" in node:
            return f"map to {_type(node['additionalProperties'])}"
        case "string" if "enum" in node:
            return " or ".join(_code(value) for value in node["enum"])
        case "string" if node.get("format") == "date-time":
            return "time"
        case other:
            return str(other)


def _bounds(node: dict[str, Any]) -> str:
    bounds = []
    if "minimum" in node or "maximum" in node:
        bounds.append(f"{node.get('minimum', '')} to {node.get('maximum', '')}".strip().removesuffix(" to"))
    if "maxLength" in node:
        bounds.append(f"at most {node['maxLength']} characters")
    if "maxItems" in node:
        bounds.append(f"at most {node['maxItems']} items")
    if "maxProperties" in node:
        bounds.append(f"at most {node['maxProperties']} entries")
    return ", ".join(bounds)


def _code(value: object) -> str:
    match value:
        case bool():
            return f"`{str(value).lower()}`"
        case "":
            return "empty"
        case {}:
            return "`{}`"
        case _:
            return f"`{value}`"
