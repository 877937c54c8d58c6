"""Tables as `kubectl get` receives them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tidewheel.local.apimachinery.durations import human_duration
from tidewheel.local.apimachinery.fields import Gvk
from tidewheel.local.apimachinery.jsonpath import compile_path, printed
from tidewheel.local.apimachinery.tables import table

NOW = datetime(2026, 11, 22, 8, 53, tzinfo=UTC)
CREATED = "2026-11-22T08:52:01Z"


def cells(obj, **more):
    return table([obj], gvk=Gvk.of(obj), now=NOW, **more)["rows"][0]["cells"]


def names(answer):
    return [column["name"] for column in answer["columnDefinitions"]]


def test_a_custom_resource_is_printed_by_its_columns(gadget_crd, make_gadget):
    columns = gadget_crd["spec"]["versions"][0]["additionalPrinterColumns"]
    metadata = {"creationTimestamp": CREATED, "resourceVersion": "7"}
    gadget = make_gadget(
        "p", metadata=metadata, size=12, status={"conditions": [{"type": "Ready", "status": "True"}]}
    )
    answer = table([gadget], gvk=Gvk.of(gadget), now=NOW, columns=columns)
    assert (answer["kind"], answer["metadata"]) == ("Table", {"resourceVersion": "7"})
    assert names(answer) == ["Name", "Size", "Ready", "Age"]
    assert answer["columnDefinitions"][1] == {
        "description": "Custom resource definition column (in JSONPath format): .spec.size",
        "format": "",
        "name": "Size",
        "priority": 0,
        "type": "integer",
    }
    (row,) = answer["rows"]
    assert row["cells"] == ["p", 12, "True", "59s"]
    assert row["object"] == {
        "apiVersion": "meta.k8s.io/v1",
        "kind": "PartialObjectMetadata",
        "metadata": gadget["metadata"],
    }


def test_an_absent_field_prints_as_nothing(gadget_crd, make_gadget):
    columns = gadget_crd["spec"]["versions"][0]["additionalPrinterColumns"]
    assert cells(make_gadget(), columns=columns) == ["a", 1, None, None]


def test_a_custom_resource_without_columns_prints_its_age(make_gadget):
    gadget = make_gadget(metadata={"creationTimestamp": CREATED})
    assert names(table([gadget], gvk=Gvk.of(gadget), now=NOW, columns=[])) == ["Name", "Age"]
    assert cells(gadget, columns=[]) == ["a", "59s"]


@pytest.mark.parametrize(("include", "has"), [("Object", "spec"), ("Metadata", "metadata"), ("None", None)])
def test_rows_carry_as_much_of_the_object_as_was_asked_for(make_gadget, include, has):
    (row,) = table([make_gadget()], gvk=Gvk("a", "v1", "B"), now=NOW, columns=[], include_object=include)[
        "rows"
    ]
    assert ("object" in row) == (has is not None)
    assert has is None or has in row["object"]


def pod(**status):
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "one", "creationTimestamp": CREATED},
        "spec": {"containers": [{"name": "main"}], "nodeName": "fake"},
        "status": {"phase": "Pending", **status},
    }


def container(**state):
    return [{"name": "main", "ready": "running" in state, "restartCount": 0, "state": state}]


def test_a_running_pod_prints_as_recorded():
    running = pod(
        phase="Running", podIP="127.1.0.9", containerStatuses=container(running={"startedAt": None})
    )
    answer = table([running], gvk=Gvk("", "v1", "Pod"), now=NOW)
    assert names(answer) == [
        "Name",
        "Ready",
        "Status",
        "Restarts",
        "Age",
        "IP",
        "Node",
        "Nominated Node",
        "Readiness Gates",
    ]
    assert answer["rows"][0]["cells"] == [
        "one",
        "1/1",
        "Running",
        "0",
        "59s",
        "127.1.0.9",
        "fake",
        "<none>",
        "<none>",
    ]


@pytest.mark.parametrize(
    ("status", "word"),
    [
        ({}, "Pending"),
        ({"containerStatuses": container(waiting={"reason": "CrashLoopBackOff"})}, "CrashLoopBackOff"),
        ({"containerStatuses": container(terminated={"exitCode": 3})}, "ExitCode:3"),
        (
            {"phase": "Succeeded", "containerStatuses": container(terminated={"reason": "Completed"})},
            "Completed",
        ),
        ({"phase": "Failed", "reason": "Evicted"}, "Evicted"),
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]},
            "SchedulingGated",
        ),
    ],
)
def test_a_pod_is_summed_up_in_one_word(status, word):
    assert cells(pod(**status))[2] == word


def test_init_containers_are_counted_until_they_are_done():
    starting = pod(initContainerStatuses=[{"name": "i", "state": {"running": {}}}])
    starting["spec"]["initContainers"] = [{"name": "i"}]
    assert cells(starting)[2] == "Init:0/1"
    starting["status"]["initContainerStatuses"][0]["state"] = {"terminated": {"exitCode": 0}}
    assert cells(starting)[2] == "Pending"


def test_a_pod_that_is_being_deleted_says_so():
    going = pod(phase="Running")
    going["metadata"]["deletionTimestamp"] = CREATED
    assert cells(going)[2] == "Terminating"


def test_restarts_tell_when_the_last_one_was():
    restarted = container(running={})
    restarted[0] |= {"restartCount": 2, "lastState": {"terminated": {"finishedAt": "2026-11-22T08:52:30Z"}}}
    assert cells(pod(containerStatuses=restarted))[3] == "2 (30s ago)"


@pytest.mark.parametrize(
    ("obj", "want"),
    [
        (
            {
                "kind": "Service",
                "spec": {
                    "type": "NodePort",
                    "clusterIP": "10.0.0.1",
                    "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}],
                    "selector": {"b": "2", "a": "1"},
                },
            },
            ["x", "NodePort", "10.0.0.1", "<none>", "80:30080/TCP", "59s", "a=1,b=2"],
        ),
        ({"kind": "ConfigMap", "data": {"a": ""}, "binaryData": {"b": ""}}, ["x", 2, "59s"]),
        ({"kind": "Secret", "type": "Opaque", "data": {"a": ""}}, ["x", "Opaque", 1, "59s"]),
        ({"kind": "Namespace", "status": {"phase": "Active"}}, ["x", "Active", "59s"]),
        (
            {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": {"holderIdentity": "me"}},
            ["x", "me", "59s"],
        ),
        (
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "spec": {
                    "replicas": 2,
                    "selector": {"matchLabels": {"a": "b"}},
                    "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}},
                },
                "status": {"readyReplicas": 1, "updatedReplicas": 2, "availableReplicas": 1},
            },
            ["x", "1/2", 2, 1, "59s", "c", "i", "a=b"],
        ),
        (
            {
                "kind": "Event",
                "type": "Normal",
                "reason": "Test",
                "message": "m\n",
                "count": 3,
                "involvedObject": {"kind": "Pod", "name": "one"},
                "source": {"component": "tidewheel"},
                "firstTimestamp": CREATED,
                "lastTimestamp": "2026-11-22T08:52:50Z",
            },
            ["10s", "Normal", "Test", "pod/one", "", "tidewheel", "m", "59s", 3, "x"],
        ),
        (
            {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"},
            ["x", CREATED],
        ),
    ],
)
def test_built_in_kinds_print_their_columns(obj, want):
    assert cells({"apiVersion": "v1", "metadata": {"name": "x", "creationTimestamp": CREATED}, **obj}) == want


def test_a_node_prints_whether_it_takes_pods():
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": "n",
            "creationTimestamp": CREATED,
            "labels": {"node-role.kubernetes.io/worker": ""},
        },
        "spec": {"unschedulable": True},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "nodeInfo": {"kubeletVersion": "v1.36.0"},
            "addresses": [{"type": "InternalIP", "address": "127.0.0.2"}],
        },
    }
    assert cells(node)[:7] == [
        "n",
        "Ready,SchedulingDisabled",
        "worker",
        "59s",
        "v1.36.0",
        "127.0.0.2",
        "<none>",
    ]


@pytest.mark.parametrize(
    ("seconds", "want"),
    [
        (-5, "<invalid>"),
        (-1, "0s"),
        (119, "119s"),
        (120, "2m"),
        (330, "5m30s"),
        (3600, "60m"),
        (4 * 3600 + 300, "4h5m"),
        (47 * 3600, "47h"),
        (50 * 3600, "2d2h"),
        (12 * 86400, "12d"),
        (800 * 86400, "2y70d"),
        (9 * 365 * 86400, "9y"),
    ],
)
def test_durations_get_coarser_as_they_grow(seconds, want):
    assert human_duration(seconds) == want


@pytest.mark.parametrize(
    ("path", "want"),
    [
        (".a.b", "1"),
        (".list[0].n", "x"),
        (".list[-1].n", "y"),
        (".list[*].n", "x y"),
        (".list[0:1].n", "x"),
        (".list[?(@.n=='y')].v", "2"),
        (".list[?(@.v > 1)].n", "y"),
        (".list[?(@.w)].n", ""),
        (".m['k.z']", "q"),
        (r".m.k\.z", "q"),
        (".none.x", ""),
        (".a", '{"b":1}'),
    ],
)
def test_json_paths_find(path, want):
    value = {"a": {"b": 1}, "list": [{"n": "x", "v": 1}, {"n": "y", "v": 2}], "m": {"k.z": "q"}}
    assert printed(compile_path(path).find(value)) == want


def test_a_path_that_cannot_be_read_is_an_error():
    with pytest.raises(ValueError, match="cannot be read"):
        compile_path(".a[")
