"""What users get wrong, and what they are told."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest
from tests.e2e.cluster import Namespace, Refused, eventually, pd_service


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param({"prefill": {"replicas": 0}}, "spec.prefill.replicas", id="a role without pods"),
        pytest.param({"model": {"name": "m", "source": {}}}, "exactly one of", id="a model from nowhere"),
        pytest.param(
            {"rollout": {"maxSurgeGroups": 0}}, "must not both be 0", id="a rollout that cannot move"
        ),
        pytest.param(
            {"gateway": {"service": {"nodePort": 30000}}},
            "nodePort needs type",
            id="a node port of a ClusterIP",
        ),
        pytest.param(
            {"decode": {"resources": {"limits": {"cpu": "two"}}}},
            "spec.decode.resources.limits",
            id="no quantity",
        ),
    ],
)
def test_an_invalid_spec_is_refused_with_the_fields_path(
    namespace: Namespace, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(Refused) as refused:
        namespace.apply(pd_service(**change))
    assert said in str(refused.value)


def test_an_unknown_field_is_named(namespace: Namespace) -> None:
    with pytest.raises(Refused, match="prefil"):
        namespace.apply(pd_service(prefil={"replicas": 1}))


def condition_with(namespace: Namespace, reason: str) -> dict[str, str]:
    return dict(eventually(lambda: (c := namespace.condition()) and c["reason"] == reason and c))


def event_with(namespace: Namespace, reason: str) -> dict[str, Any]:
    def find() -> dict[str, Any] | None:
        events = namespace.get("events.events.k8s.io")["items"]
        return next(
            (e for e in events if e["reason"] == reason and e["regarding"]["kind"] == "PDService"), None
        )

    return dict(eventually(find))


def test_a_missing_model_is_a_condition_and_an_event_that_say_what_to_do(namespace: Namespace) -> None:
    missing = {"name": "m", "source": {"package": {"name": "no-such-model-package"}}}
    namespace.apply(pd_service(model=missing, prefill={"template": None}, decode={"template": None}))
    condition = condition_with(namespace, "ModelNotFound")
    assert condition["status"] == "False"
    assert "no-such-model-package" in condition["message"]
    assert "no-such-model-package" in event_with(namespace, "ModelNotFound")["note"]


def test_an_impossible_resource_shows_what_the_scheduler_says(namespace: Namespace) -> None:
    namespace.apply(pd_service(decode={"resources": {"requests": {"cpu": "10000"}}}))
    condition = condition_with(namespace, "Unschedulable")
    assert "Insufficient cpu" in condition["message"]
    assert event_with(namespace, "Unschedulable")["type"] == "Warning"


def test_an_unknown_accelerator_names_those_there_are(namespace: Namespace) -> None:
    namespace.apply(pd_service(decode={"accelerator": "abacus"}))
    assert "nvidia" in condition_with(namespace, "UnknownAccelerator")["message"]


def test_a_taken_node_port_is_a_condition_that_says_so(namespace: Namespace) -> None:
    taken = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "other"},
        "spec": {"type": "NodePort", "ports": [{"port": 80}], "selector": {"app": "other"}},
    }
    namespace.apply(taken)
    port = namespace.get("service", "other")["spec"]["ports"][0]["nodePort"]
    namespace.apply(pd_service(gateway={"service": {"type": "NodePort", "nodePort": port}}))
    assert str(port) in condition_with(namespace, "PortTaken")["message"]
    namespace.kubectl("delete", "service", "other")
    namespace.wait_ready()


def test_an_object_of_a_childs_name_is_never_taken_over(namespace: Namespace) -> None:
    other = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "chat-routes"},
        "data": {"mine": "yes"},
    }
    namespace.apply(other)
    namespace.apply(pd_service())
    assert "chat-routes" in condition_with(namespace, "NameTaken")["message"]
    assert namespace.get("configmap", "chat-routes")["data"] == {"mine": "yes"}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        pytest.param("/v1/chat/completions", b"{not json", 400, id="malformed JSON"),
        pytest.param("/v1/chat/completions", b"[]", 400, id="not an object"),
        pytest.param("/v1/chat/completions", b'{"model": "stand-in"}', 400, id="no messages"),
        pytest.param("/v1/completions", b'{"model": "other", "prompt": "x"}', 404, id="another model"),
        pytest.param("/v1/completions", b"x" * 1_100_000, 413, id="a body over the limit"),
        pytest.param("/v1/nothing", b"{}", 404, id="no such path"),
    ],
)
def test_a_bad_request_gets_an_openai_error_object(
    serving: Namespace, path: str, body: bytes, status: int
) -> None:
    request = urllib.request.Request(
        serving.url() + path, data=body, headers={"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    assert refused.value.code == status
    error = json.loads(refused.value.read())["error"]
    assert error["message"]
    assert error["type"]


@pytest.fixture(scope="module")
def serving(module_namespace: Namespace) -> Namespace:
    module_namespace.apply(pd_service())
    module_namespace.wait_ready()
    return module_namespace
