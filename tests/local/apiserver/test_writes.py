"""What happens to an object on its way into the store, as a client sees it."""

from __future__ import annotations

import base64
import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.local.apiserver.conftest import APPLY, CONFIG_MAPS, CRDS, GADGET_CRD, GADGETS, MERGE, PODS, Client

from tidewheel.local.apiserver.protobuf import UnknownMessage, decode
from tidewheel.local.apiserver.protobuf_messages import KINDS

SECRETS = "/api/v1/namespaces/default/secrets"
PROTOBUF = "application/vnd.kubernetes.protobuf"


def message(*fields: tuple[int, bytes]) -> bytes:
    """A protobuf message of short byte fields."""
    return b"".join(bytes([number << 3 | 2, len(value)]) + value for number, value in fields)


def sealed(kind: str, *fields: tuple[int, bytes]) -> bytes:
    """An object as Kubernetes sends it."""
    return b"k8s\x00" + message((1, message((1, b"v1"), (2, kind.encode()))), (2, message(*fields)))


async def test_a_stale_update_is_a_conflict(client: Client):
    first = await client.create(CONFIG_MAPS, "a", data={"k": "1"})
    await client.ok("PUT", f"{CONFIG_MAPS}/a", {**first, "data": {"k": "2"}})
    status, answer = await client.ask("PUT", f"{CONFIG_MAPS}/a", {**first, "data": {"k": "3"}})
    assert (status, answer["reason"]) == (409, "Conflict")


async def test_an_update_that_changes_nothing_is_no_event(client: Client):
    first = await client.create(CONFIG_MAPS, "a", data={"k": "1"})
    assert await client.ok("PATCH", f"{CONFIG_MAPS}/a", {"data": {"k": "1"}}, content_type=MERGE) == first


async def test_a_dry_run_leaves_no_trace(client: Client):
    await client.ok("POST", f"{CONFIG_MAPS}?dryRun=All", {"metadata": {"name": "a"}})
    assert (await client.ask("GET", f"{CONFIG_MAPS}/a"))[0] == 404
    await client.create(CONFIG_MAPS, "b", data={"k": "1"})
    patched = await client.ok(
        "PATCH", f"{CONFIG_MAPS}/b?dryRun=All", {"data": {"k": "2"}}, content_type=MERGE
    )
    assert patched["data"] == {"k": "2"}
    assert (await client.get(f"{CONFIG_MAPS}/b"))["data"] == {"k": "1"}
    await client.ok("DELETE", f"{CONFIG_MAPS}/b?dryRun=All")
    await client.get(f"{CONFIG_MAPS}/b")


async def test_unknown_fields_are_warned_about_unless_the_client_asks_otherwise(client: Client):
    body = {"metadata": {"name": "a"}, "dat": {}}
    async with client.session.post(CONFIG_MAPS, json=body) as response:
        assert response.headers["Warning"] == '299 - "unknown field \\"dat\\""'
    status, answer = await client.ask("POST", f"{CONFIG_MAPS}?fieldValidation=Strict", body)
    assert (status, 'unknown field "dat"' in answer["message"]) == (400, True)


async def test_duplicate_keys_are_refused_when_the_client_is_strict(client: Client):
    body = b'{"metadata": {"name": "a"}, "data": {"k": "1", "k": "2"}}'
    status, answer = await client.ask("POST", f"{CONFIG_MAPS}?fieldValidation=Strict", body)
    assert (status, 'duplicate field "k"' in answer["message"]) == (400, True)


async def test_yaml_is_read_as_json_would_be(client: Client):
    body = b"metadata: {name: y}\ndata: {day: '2026-01-01', plain: 2026-01-01}"
    await client.ok("POST", CONFIG_MAPS, body, content_type="application/yaml")
    assert (await client.get(f"{CONFIG_MAPS}/y"))["data"] == {"day": "2026-01-01", "plain": "2026-01-01"}


async def test_a_secret_can_come_as_protobuf(client: Client):
    metadata = message((1, b"s"), (11, message((1, b"owner"), (2, b"helm"))))
    await client.ok(
        "POST",
        SECRETS,
        sealed("Secret", (1, metadata), (2, message((1, b"k"), (2, b"v")))),
        content_type=PROTOBUF,
    )
    stored = await client.get(f"{SECRETS}/s")
    assert stored["data"] == {"k": base64.b64encode(b"v").decode()}
    assert stored["metadata"]["labels"] == {"owner": "helm"}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"nonsense", id="no prefix"),
        pytest.param(b"k8s\x00", id="no kind"),
        pytest.param(b"k8s\x00\xff\xff", id="no message"),
        pytest.param(message((1, b"v1"), (2, b"Secret")), id="cut off"),
        pytest.param(sealed("ResourceQuota"), id="a kind that is not read"),
        pytest.param(sealed("Secret", (9, b"new")), id="a field that would be lost"),
    ],
)
async def test_protobuf_that_cannot_be_read_in_full_is_an_unsupported_media_type(client: Client, body: bytes):
    status, answer = await client.ask("POST", SECRETS, body, content_type=PROTOBUF)
    assert (status, answer["reason"]) == (415, "UnsupportedMediaType")
    assert "send JSON" in answer["message"]


@given(body=st.binary(max_size=64), kind=st.sampled_from(sorted(KINDS)))
def test_no_bytes_break_the_protobuf_reader(body: bytes, kind: str):
    for whole in (body, b"k8s\x00" + body, sealed(kind) + body, sealed(kind, (1, body), (2, body))):
        with contextlib.suppress(UnknownMessage):
            decode(whole)


async def test_status_and_spec_have_their_own_endpoints(gadgets: Client):
    await gadgets.create_gadget("g")
    changed = {"spec": {"size": 5}, "status": {"replicas": 3}}
    by_status = await gadgets.ok("PATCH", f"{GADGETS}/g/status", changed, content_type=MERGE)
    assert (by_status["spec"]["size"], by_status["status"], by_status["metadata"]["generation"]) == (
        1,
        {"replicas": 3},
        1,
    )
    changed["status"]["replicas"] = 9
    by_main = await gadgets.ok("PATCH", f"{GADGETS}/g", changed, content_type=MERGE)
    assert (by_main["spec"]["size"], by_main["status"], by_main["metadata"]["generation"]) == (
        5,
        {"replicas": 3},
        2,
    )


async def test_a_changed_definition_counts_at_once(gadgets: Client):
    version = {**GADGET_CRD["spec"]["versions"][0], "name": "v2", "storage": False}
    await gadgets.ok("PATCH", f"{CRDS}/gadgets.test.example.com", [
        {"op": "add", "path": "/spec/versions/-", "value": version},
    ], content_type="application/json-patch+json")  # fmt: skip
    await gadgets.create_gadget("g")
    other = await gadgets.get("/apis/test.example.com/v2/namespaces/default/gadgets/g")
    assert other["apiVersion"] == "test.example.com/v2"
    assert other["metadata"]["uid"] == (await gadgets.get(f"{GADGETS}/g"))["metadata"]["uid"]


async def test_events_have_two_faces(client: Client):
    event = {
        "metadata": {"name": "e", "namespace": "default"},
        "regarding": {"kind": "Pod", "name": "p", "namespace": "default"},
        "note": "why",
        "reason": "Because",
        "type": "Normal",
        "action": "Test",
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "tidewheel.dev/operator",
        "reportingInstance": "one",
    }
    await client.ok("POST", "/apis/events.k8s.io/v1/namespaces/default/events", event)
    core = await client.get("/api/v1/namespaces/default/events/e")
    assert (core["message"], core["involvedObject"]["name"], core["reportingComponent"]) == (
        "why",
        "p",
        "tidewheel.dev/operator",
    )
    face = "/apis/events.k8s.io/v1/namespaces/default/events"
    again = await client.get(f"{face}/e")
    assert (again["note"], again["regarding"]["name"]) == ("why", "p")
    series = {"count": 3, "lastObservedTime": "2026-01-01T00:00:00.000000Z"}
    patched = await client.ok("PATCH", f"{face}/e", {"note": "still", "series": series}, content_type=MERGE)
    assert (patched["note"], patched["series"]["count"]) == ("still", 3)
    applied = {"apiVersion": "events.k8s.io/v1", "kind": "Event", "note": "forced"}
    await client.ok("PATCH", f"{face}/e?fieldManager=m&force=true", applied, content_type=APPLY)
    assert (await client.get("/api/v1/namespaces/default/events/e"))["message"] == "forced"
    listed = await client.get("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dp")
    assert [one["metadata"]["name"] for one in listed["items"]] == ["e"]


async def test_a_pod_needs_its_service_account_and_priority_class(client: Client):
    spec = {"containers": [{"name": "c", "image": "i"}]}
    for missing in ({"serviceAccountName": "none"}, {"priorityClassName": "none"}):
        status, answer = await client.ask(
            "POST", PODS, {"metadata": {"name": "p"}, "spec": {**spec, **missing}}
        )
        assert (status, answer["reason"]) == (403, "Forbidden")
    await client.create("/apis/scheduling.k8s.io/v1/priorityclasses", "high", value=7)
    pod = await client.create(PODS, "p", spec={**spec, "priorityClassName": "high"})
    assert pod["spec"]["priority"] == 7


async def test_a_ready_node_loses_its_taint(client: Client):
    node = await client.create("/api/v1/nodes", "n")
    assert [taint["key"] for taint in node["spec"]["taints"]] == ["node.kubernetes.io/not-ready"]
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    node = await client.ok(
        "PATCH", "/api/v1/nodes/n/status", ready, content_type="application/strategic-merge-patch+json"
    )
    assert "taints" not in node["spec"]
    ready["status"]["conditions"][0]["status"] = "Unknown"
    node = await client.ok(
        "PATCH", "/api/v1/nodes/n/status", ready, content_type="application/strategic-merge-patch+json"
    )
    assert [taint["key"] for taint in node["spec"]["taints"]] == ["node.kubernetes.io/not-ready"]


async def test_a_body_of_the_wrong_shape_is_a_bad_request(client: Client):
    for body in (b"", b"{", b"[]", b'"x"', b'{"metadata": []}', b'{"kind": "Pod"}', b'{"apiVersion": "v2"}'):
        status, answer = await client.ask("POST", CONFIG_MAPS, body)
        assert (status, answer["kind"]) == (400, "Status"), body


async def test_an_oversized_body_is_refused(client: Client):
    body = b'{"metadata": {"name": "a"}, "data": {"k": "' + b"x" * (4 << 20) + b'"}}'
    assert (await client.ask("POST", CONFIG_MAPS, body))[0] == 413


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", f"{PODS}/p/binding", {"target": "n"}),
        ("POST", f"{PODS}/p/eviction", {"deleteOptions": {"gracePeriodSeconds": "soon"}}),
        ("DELETE", f"{PODS}/p", {"preconditions": ["uid"]}),
        ("DELETE", f"{PODS}/p?gracePeriodSeconds=soon", None),
        ("PATCH", f"{PODS}/p", {"spec": {"nodeName": 3}}),
        ("PUT", "/apis/apps/v1/namespaces/default/replicasets/r/scale", {"spec": {"replicas": "two"}}),
        ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", {"spec": []}),
        (
            "POST",
            "/api/v1/namespaces/default/serviceaccounts/default/token",
            {"spec": {"expirationSeconds": "x"}},
        ),
    ],
)
async def test_options_and_parts_of_the_wrong_type_are_bad_requests(
    client: Client, method: str, path: str, body: Any
):
    await client.create_pod("p")
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    spec = {"selector": {"matchLabels": {"a": "b"}}, "template": template}
    await client.create("/apis/apps/v1/namespaces/default/replicasets", "r", spec=spec)
    content_type = MERGE if method == "PATCH" else "application/json"
    status, answer = await client.ask(method, path, body, content_type=content_type)
    assert (status, answer["reason"]) == (400, "BadRequest")
