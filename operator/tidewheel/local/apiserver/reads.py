"""Gets and lists: selectors, pages, consistent versions, and the form a client wants them in."""

from __future__ import annotations

import base64
import binascii
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tidewheel.local.apimachinery import selectors, tables
from tidewheel.local.apimachinery.fields import BadRequest
from tidewheel.local.apiserver import errors
from tidewheel.local.apiserver.changes import Expired, Item
from tidewheel.local.apiserver.conversion import presented, presented_object
from tidewheel.local.apiserver.encoding import dumps, encode_list, encode_object, type_prefix
from tidewheel.local.apiserver.negotiation import Form
from tidewheel.local.apiserver.registry import Resource
from tidewheel.local.apiserver.requests import seconds
from tidewheel.local.apiserver.shaping import gvk_of
from tidewheel.local.apiserver.store import Store
from tidewheel.local.apiserver.writes import Clock

Manifest = dict[str, Any]

CONTINUE_EXPIRED = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list "
    "without the continue parameter, or use the continue token in this response to retrieve the remainder of the results."
)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects of a collection a request wants."""

    namespace: str | None
    pairs: tuple[tuple[str, str], ...]
    """Labels that every wanted object carries; they find the index."""
    wants: Callable[[Item], bool]
    is_everything: bool
    """Whether there is no selector, so that pages can say how many objects remain."""


def selection(resource: Resource, namespace: str, query: Mapping[str, str], name: str = "") -> Selection:
    """The selection that a path and its query describe.

    Raises:
        ApiError: 400 for a selector that cannot be parsed or names a field that cannot be selected by.
    """
    label_text, field_text = query.get("labelSelector", ""), query.get("fieldSelector", "")
    try:
        labels = selectors.parse_label_selector(label_text)
        supported = selectors.supported_fields(gvk_of(resource), resource.selectable)
        fields = selectors.parse_field_selector(field_text, supported)
    except BadRequest as error:
        raise errors.bad_request(str(error)) from None
    wanted_namespace = namespace if resource.namespaced and namespace else None

    def wants(item: Item) -> bool:
        if wanted_namespace is not None and item.key[0] != wanted_namespace:
            return False
        if name and item.key[1] != name:
            return False
        return (not label_text or labels.matches(item.labels)) and (
            not field_text or fields.matches(item.fields)
        )

    return Selection(
        namespace=wanted_namespace,
        pairs=tuple(
            (one.key, one.values[0])
            for one in labels.requirements
            if one.operator == "In" and len(one.values) == 1
        ),
        wants=wants,
        is_everything=not (label_text or field_text or name),
    )


def answer_object(
    resource: Resource, obj: Manifest, form: Form, query: Mapping[str, str], clock: Clock
) -> bytes:
    """One object in the form that the client wants; objects of subresources are only ever themselves."""
    if form.is_table:
        return _table(resource, [obj], query, clock)
    if form.is_metadata:
        return dumps(_metadata_only(obj))
    return encode_object(obj)


def list_objects(
    store: Store, resource: Resource, namespace: str, form: Form, query: Mapping[str, str], clock: Clock
) -> bytes:
    """A list, as JSON.

    Raises:
        ApiError: 400 for bad parameters, 410 when the version asked for is gone, 504 when it has not come yet.
    """
    chosen = selection(resource, namespace, query)
    page = _page(store, resource, chosen, query)
    if form.is_table:
        objects = [presented_object(resource, item) for item in page.items]
        return _table(resource, objects, query, clock, metadata=page.metadata(custom=False))
    metadata = page.metadata(custom=resource.custom)
    if form.is_metadata:
        parts = [dumps(_metadata_only(presented_object(resource, item))) for item in page.items]
        return encode_list("PartialObjectMetadataList", "meta.k8s.io/v1", metadata, parts)
    return encode_list(resource.list_kind, resource.api_version, metadata, _items(resource, page.items))


def event_object(
    resource: Resource, item: Item, form: Form, query: Mapping[str, str], clock: Clock, *, is_first: bool
) -> bytes:
    """The object of a watch event in the form that the client wants; only the first table describes its columns."""
    if form.is_table:
        return _table(resource, [presented_object(resource, item)], query, clock, with_definitions=is_first)
    if form.is_metadata:
        return dumps(_metadata_only(presented_object(resource, item)))
    return presented(resource, item)


@dataclass(frozen=True, slots=True)
class _Page:
    items: list[Item]
    version: int
    next_token: str
    remaining: int | None

    def metadata(self, *, custom: bool) -> Manifest:
        shown: Manifest = {"resourceVersion": str(self.version)}
        if custom or self.next_token:
            shown["continue"] = self.next_token
        if self.next_token and self.remaining:
            shown["remainingItemCount"] = self.remaining
        return shown


def _page(store: Store, resource: Resource, chosen: Selection, query: Mapping[str, str]) -> _Page:
    limit = seconds(query, "limit") or 0
    collection = store.collection(resource.storage)
    version, after = store.version, None
    exact: int | None = None
    token = query.get("continue")
    if token:
        version, after = _read_token(token)
        exact = version
    else:
        asked = seconds(query, "resourceVersion") or 0
        if asked > store.version:
            raise errors.too_large_version(asked, store.version)
        if asked and query.get("resourceVersionMatch") == "Exact":
            version = exact = asked
    try:
        found = collection.select(
            namespace=chosen.namespace, labels=() if exact else chosen.pairs, after=after, version=exact
        )
    except Expired as error:
        raise errors.expired(CONTINUE_EXPIRED if token else str(error)) from None
    if chosen.is_everything:
        items = found
    else:
        # One more than the page holds tells whether there is another page.
        wanted = (item for item in found if chosen.wants(item))
        items = list(itertools.islice(wanted, limit + 1 if limit else None))
    if not limit or len(items) <= limit:
        return _Page(items, version, "", None)
    remaining = len(items) - limit if chosen.is_everything else None
    return _Page(items[:limit], version, _write_token(version, items[limit - 1].key), remaining)


def _write_token(version: int, last: tuple[str, str]) -> str:
    token = {"v": "meta.k8s.io/v1", "rv": version, "start": list(last)}
    return base64.urlsafe_b64encode(dumps(token)).decode().rstrip("=")


def _read_token(token: str) -> tuple[int, tuple[str, str]]:
    try:
        parsed = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        namespace, name = parsed["start"]
        return int(parsed["rv"]), (str(namespace), str(name))
    except (ValueError, KeyError, TypeError, binascii.Error):
        raise errors.bad_request(
            "continue key is not valid: it must come from a list that this server answered"
        ) from None


def _items(resource: Resource, items: Iterable[Item]) -> list[bytes]:
    """The items of a list; those of built-in kinds do not repeat kind and apiVersion."""
    if resource.custom:
        return [presented(resource, item) for item in items]
    cut = len(type_prefix(resource.kind, resource.api_version))
    return [b"{" + presented(resource, item)[cut:] for item in items]


def _metadata_only(obj: Manifest) -> Manifest:
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}


def _table(
    resource: Resource,
    objects: list[Manifest],
    query: Mapping[str, str],
    clock: Clock,
    *,
    metadata: Manifest | None = None,
    with_definitions: bool = True,
) -> bytes:
    return dumps(
        tables.table(
            objects,
            gvk=gvk_of(resource),
            now=clock(),
            columns=resource.printer_columns if resource.custom else None,
            include_object=query.get("includeObject") or "Metadata",
            list_metadata=metadata,
            with_definitions=with_definitions,
        )
    )
