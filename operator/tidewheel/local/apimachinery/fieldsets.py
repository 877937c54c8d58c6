"""Sets of field paths in the FieldsV1 form of managed fields, and their algebra.

A set is a trie of dicts whose keys are FieldsV1 path elements: `f:name` (a field), `k:{"name":"a"}` (an item of a keyed
list), `v:"x"` (an item of a set). A node is in the set when it is empty or holds a `.`; the root never is. Sets are never
changed in place, so they share parts freely, also with the objects that they were read from. The rules are those of
sigs.k8s.io/structured-merge-diff, which kube-apiserver uses.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

FieldSet = dict[str, Any]
LEAF: Final[FieldSet] = {}
SELF: Final = "."


def union(one: FieldSet, other: FieldSet) -> FieldSet:
    """Paths in either set."""
    if not one or not other:
        return one or other
    joined = dict(one)
    for element, node in other.items():
        mine = joined.get(element)
        joined[element] = node if mine is None else _join(mine, node)
    return joined


def _join(one: FieldSet, other: FieldSet) -> FieldSet:
    if one is other or one == other:
        return one
    joined = dict(one) if one else {SELF: LEAF}
    for element, node in (other or {SELF: LEAF}).items():
        mine = joined.get(element)
        joined[element] = node if mine is None or element == SELF else _join(mine, node)
    return joined if len(joined) > 1 or SELF not in joined else LEAF


def difference(one: FieldSet, other: FieldSet) -> FieldSet:
    """Paths in `one` that are not in `other`."""
    if not one or not other:
        return one
    left: FieldSet = {}
    for element, node in one.items():
        theirs = other.get(element)
        kept = node if theirs is None else _without(node, theirs)
        if kept is not None:
            left[element] = kept
    return left


def _without(one: FieldSet, other: FieldSet) -> FieldSet | None:
    children = difference(_children(one), _children(other))
    return _node(is_member(one) and not is_member(other), children)


def intersection(one: FieldSet, other: FieldSet) -> FieldSet:
    """Paths in both sets."""
    common: FieldSet = {}
    for element, node in one.items():
        theirs = other.get(element)
        if theirs is not None:
            both = _node(
                is_member(node) and is_member(theirs), intersection(_children(node), _children(theirs))
            )
            if both is not None:
                common[element] = both
    return common


def without_subtree(fields: FieldSet, path: tuple[str, ...]) -> FieldSet:
    """The set without everything at and below a path of field names."""
    element = f"f:{path[0]}"
    node = fields.get(element)
    if node is None:
        return fields
    rest = {key: value for key, value in fields.items() if key != element}
    if len(path) > 1:
        kept = _node(is_member(node), without_subtree(_children(node), path[1:]))
        if kept is not None:
            rest[element] = kept
    return rest


def is_member(node: FieldSet) -> bool:
    """Whether the path that leads to the node is itself in the set."""
    return not node or SELF in node


def paths(fields: FieldSet, prefix: str = "") -> Iterator[str]:
    """The paths of a set as conflicts print them: `.spec.ports[name="b"].port`."""
    for element in sorted(fields):
        if element == SELF:
            continue
        path = prefix + printed(element)
        if is_member(fields[element]):
            yield path
        yield from paths(fields[element], path)


def printed(element: str) -> str:
    """A path element as conflicts print it."""
    kind, text = element[0], element[2:]
    if kind == "f":
        return f".{text}"
    if kind == "k":
        return f"[{','.join(f'{key}={json.dumps(value)}' for key, value in json.loads(text).items())}]"
    return f"[={text}]" if kind == "v" else f"[{text}]"


def _children(node: FieldSet) -> FieldSet:
    if SELF not in node:
        return node
    return {element: child for element, child in node.items() if element != SELF}


def _node(member: bool, children: FieldSet) -> FieldSet | None:
    if not children:
        return LEAF if member else None
    return {SELF: LEAF, **children} if member else children


def as_member(node: FieldSet | None) -> FieldSet:
    """The node with its own path in the set."""
    if not node:
        return LEAF
    return node if SELF in node else {SELF: LEAF, **node}
