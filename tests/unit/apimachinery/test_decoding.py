"""Built-in objects come out as Go prints them, with the defaults that a real API server was seen to give."""

from __future__ import annotations

from copy import deepcopy

import pytest

from tidewheel.local.apimachinery.admission import (
    admit,
    prepare_for_create,
    prepare_for_update,
    quality_of_service,
)
from tidewheel.local.apimachinery.decoding import decode_builtin, decode_custom, decode_metadata, empty_object
from tidewheel.local.apimachinery.defaulting import default_builtin
from tidewheel.local.apimachinery.fields import BadRequest, Gvk
from tidewheel.local.apimachinery.quantities import MalformedQuantity, canonical, quantity

POD = Gvk("", "v1", "Pod")


def decoded(obj):
    gvk = Gvk.of(obj)
    result = deepcopy(obj)
    decode_builtin(result, gvk)
    default_builtin(result, gvk)
    return result


def created(obj):
    gvk = Gvk.of(obj)
    result = decoded(obj)
    admit(result, gvk)
    prepare_for_create(result, gvk)
    return result


def test_a_pod_gets_the_defaults_that_were_recorded():
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"labels": {"app": "w"}, "name": "one"},
        "spec": {
            "containers": [
                {
                    "command": ["x"],
                    "image": "img:1",
                    "name": "main",
                    "ports": [{"containerPort": 80}],
                    "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
                }
            ],
            "restartPolicy": "Never",
        },
    }

    def evicted(key):
        return {"effect": "NoExecute", "key": key, "operator": "Exists", "tolerationSeconds": 300}

    assert created(pod) == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"labels": {"app": "w"}, "name": "one"},
        "spec": {
            "containers": [
                {
                    "command": ["x"],
                    "image": "img:1",
                    "imagePullPolicy": "IfNotPresent",
                    "name": "main",
                    "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "resources": {
                        "limits": {"cpu": "1", "memory": "1Gi"},
                        "requests": {"cpu": "1", "memory": "1Gi"},
                    },
                    "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "File",
                }
            ],
            "dnsPolicy": "ClusterFirst",
            "enableServiceLinks": True,
            "preemptionPolicy": "PreemptLowerPriority",
            "priority": 0,
            "restartPolicy": "Never",
            "schedulerName": "default-scheduler",
            "securityContext": {},
            "serviceAccount": "default",
            "serviceAccountName": "default",
            "terminationGracePeriodSeconds": 30,
            "tolerations": [
                evicted("node.kubernetes.io/not-ready"),
                evicted("node.kubernetes.io/unreachable"),
            ],
        },
        "status": {"phase": "Pending", "qosClass": "Guaranteed"},
    }


@pytest.mark.parametrize(
    ("obj", "want"),
    [
        pytest.param(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "headless"},
                "spec": {"clusterIP": "None", "ports": [{"port": 80}], "selector": {"app": "w"}},
            },
            {
                "spec": {
                    "clusterIP": "None",
                    "clusterIPs": ["None"],
                    "internalTrafficPolicy": "Cluster",
                    "ipFamilies": ["IPv4"],
                    "ipFamilyPolicy": "SingleStack",
                    "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
                    "selector": {"app": "w"},
                    "sessionAffinity": "None",
                    "type": "ClusterIP",
                },
                "status": {"loadBalancer": {}},
            },
            id="a headless service",
        ),
        pytest.param(
            {
                "apiVersion": "v1",
                "count": 1,
                "involvedObject": {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "name": "one",
                    "namespace": "conformance",
                },
                "kind": "Event",
                "message": "m",
                "metadata": {"name": "e.1"},
                "reason": "Test",
                "type": "Normal",
            },
            {
                "count": 1,
                "eventTime": None,
                "firstTimestamp": None,
                "involvedObject": {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "name": "one",
                    "namespace": "conformance",
                },
                "lastTimestamp": None,
                "message": "m",
                "reason": "Test",
                "reportingComponent": "",
                "reportingInstance": "",
                "source": {},
                "type": "Normal",
            },
            id="an event prints what was not set",
        ),
        pytest.param(
            {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "conf-node"}, "spec": {}},
            {
                "spec": {"taints": [{"effect": "NoSchedule", "key": "node.kubernetes.io/not-ready"}]},
                "status": {
                    "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
                    "nodeInfo": dict.fromkeys(
                        (
                            "architecture",
                            "bootID",
                            "containerRuntimeVersion",
                            "kernelVersion",
                            "kubeProxyVersion",
                            "kubeletVersion",
                            "machineID",
                            "operatingSystem",
                            "osImage",
                            "systemUUID",
                        ),
                        "",
                    ),
                },
            },
            id="a node is tainted until it is ready",
        ),
        pytest.param(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "l4"}, "data": {"i": "3"}},
            {"data": {"i": "3"}},
            id="a config map has no defaults",
        ),
        pytest.param(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"a": "b"}},
            {"data": {"a": "Yg=="}, "type": "Opaque"},
            id="a secret's plain data is written encoded",
        ),
    ],
)
def test_built_in_kinds_get_the_defaults_that_were_recorded(obj, want):
    got = created(obj)
    assert {key: got[key] for key in got if key not in ("apiVersion", "kind", "metadata")} == want


def test_a_namespace_is_labelled_with_its_name_and_held_by_its_finalizer():
    namespace = created({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "conformance"}})
    assert namespace["metadata"]["labels"] == {"kubernetes.io/metadata.name": "conformance"}
    assert namespace["spec"] == {"finalizers": ["kubernetes"]}
    assert namespace["status"] == {"phase": "Active"}


def test_status_that_a_client_leaves_out_is_printed_as_go_does():
    pod = decoded(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {},
            "spec": {"containers": []},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [
                    {
                        "image": "i",
                        "imageID": "",
                        "name": "m",
                        "ready": True,
                        "restartCount": 0,
                        "state": {"running": {}},
                    }
                ],
            },
        }
    )
    assert pod["status"]["conditions"] == [
        {"lastProbeTime": None, "lastTransitionTime": None, "status": "True", "type": "Ready"}
    ]
    assert pod["status"]["containerStatuses"][0]["lastState"] == {}
    assert pod["status"]["containerStatuses"][0]["state"] == {"running": {"startedAt": None}}


def test_a_deployment_and_its_template_are_defaulted():
    deployment = decoded(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "d"},
            "spec": {
                "selector": {"matchLabels": {"a": "b"}},
                "template": {
                    "metadata": {"labels": {"a": "b"}},
                    "spec": {"containers": [{"name": "c", "image": "nginx"}], "serviceAccountName": "robot"},
                },
            },
        }
    )
    spec = deployment["spec"]
    assert (spec["replicas"], spec["revisionHistoryLimit"], spec["progressDeadlineSeconds"]) == (1, 10, 600)
    assert spec["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"},
    }
    pod = spec["template"]["spec"]
    assert pod["containers"][0]["imagePullPolicy"] == "Always"
    assert pod["serviceAccount"] == "robot"
    assert "enableServiceLinks" not in pod


def test_probes_and_volumes_are_defaulted(make_pod):
    probe = {"httpGet": {"port": 8000}}
    volumes = [
        {"name": "c", "configMap": {"name": "x"}},
        {"name": "e"},
        {"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}},
    ]
    pod = decoded(make_pod(container={"readinessProbe": probe}, volumes=volumes))
    assert pod["spec"]["containers"][0]["readinessProbe"] == {
        "failureThreshold": 3,
        "httpGet": {"path": "/", "port": 8000, "scheme": "HTTP"},
        "periodSeconds": 10,
        "successThreshold": 1,
        "timeoutSeconds": 1,
    }
    config, empty, projected = pod["spec"]["volumes"]
    assert config["configMap"]["defaultMode"] == 420
    assert empty["emptyDir"] == {}
    assert projected["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"] == 3600


def test_decoding_and_defaulting_a_second_time_changes_nothing(make_pod):
    once = decoded(make_pod(container={"resources": {"limits": {"cpu": 2}}}))
    assert decoded(once) == once


def test_what_go_leaves_out_is_dropped(make_pod):
    pod = make_pod(
        labels={},
        container={"args": [], "tty": False, "workingDir": ""},
        hostNetwork=False,
        nodeSelector=None,
    )
    pod["nonsense"] = 1
    result = decoded(pod)
    assert "nonsense" not in result
    assert "labels" not in result["metadata"]
    assert not {"args", "tty", "workingDir"} & result["spec"]["containers"][0].keys()
    assert not {"hostNetwork", "nodeSelector"} & result["spec"].keys()


def test_empty_structs_behind_pointers_stay(make_pod):
    pod = decoded(make_pod(container={"securityContext": {}}, volumes=[{"name": "v", "emptyDir": {}}]))
    assert pod["spec"]["containers"][0]["securityContext"] == {}
    assert pod["spec"]["volumes"] == [{"name": "v", "emptyDir": {}}]


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        pytest.param(
            {"containers": "x"},
            "cannot unmarshal string into Go struct field PodSpec.spec.containers of type []v1.Container",
            id="a list",
        ),
        pytest.param(
            {"containers": [{"name": "a", "command": "sh"}]},
            "cannot unmarshal string into Go struct field Container.spec.containers.command of type []string",
            id="inside a list",
        ),
        pytest.param(
            {"containers": [], "priority": "high"},
            "cannot unmarshal string into Go struct field PodSpec.spec.priority of type int32",
            id="a number",
        ),
        pytest.param(
            {"containers": [{"resources": {"limits": {"cpu": "lots"}}}]},
            "quantities must match the regular expression",
            id="a quantity",
        ),
        pytest.param({"containers": [], "hostNetwork": 1}, "of type bool", id="a boolean"),
    ],
)
def test_a_field_of_the_wrong_type_is_a_bad_request(spec, complaint):
    with pytest.raises(BadRequest) as refused:
        decode_builtin({"apiVersion": "v1", "kind": "Pod", "spec": spec}, POD)
    assert complaint in str(refused.value)
    assert str(refused.value).startswith('Pod in version "v1" cannot be handled as a Pod: ')


def test_a_timestamp_that_cannot_be_read_is_a_bad_request(gadget_gvk):
    with pytest.raises(BadRequest, match="parsing time"):
        decode_metadata({"creationTimestamp": "yesterday"}, gadget_gvk)


def test_times_are_printed_in_utc_with_the_precision_of_their_type():
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"creationTimestamp": "2026-01-01T02:00:00.9+02:00"},
        "spec": {"renewTime": "2026-01-01T00:00:00Z"},
    }
    result = decoded(lease)
    assert result["metadata"]["creationTimestamp"] == "2026-01-01T00:00:00Z"
    assert result["spec"]["renewTime"] == "2026-01-01T00:00:00.000000Z"


def test_an_empty_object_holds_what_go_prints_of_a_zero_value():
    assert empty_object(POD) == {"metadata": {}, "spec": {"containers": None}, "status": {}}


def test_a_custom_resource_is_pruned_and_defaulted_as_recorded(gadget_schema, gadget_gvk):
    gadget = {
        "apiVersion": "conformance.example.com/v1alpha1",
        "kind": "Gadget",
        "metadata": {"name": "pruned", "labels": {}, "finalizers": []},
        "spec": {
            "free": {"any": [1, 2]},
            "ports": [{"name": "web"}],
            "size": 1,
            "target": "50%",
            "tuning": {"note": None},
            "unknown": True,
        },
    }
    decode_custom(gadget, gadget_gvk, gadget_schema)
    assert gadget["metadata"] == {"name": "pruned"}
    assert gadget["spec"] == {
        "free": {"any": [1, 2]},
        "mode": "Safe",
        "ports": [{"name": "web", "port": 80}],
        "size": 1,
        "target": "50%",
        "tuning": {"depth": 3, "note": None},
    }


def test_the_main_endpoint_keeps_status_and_the_status_endpoint_keeps_the_rest(make_pod):
    old = created(make_pod())
    new = deepcopy(old)
    new["status"]["phase"] = "Running"
    new["spec"]["nodeName"] = "fake"

    main = deepcopy(new)
    prepare_for_update(main, old, POD)
    assert (main["status"], main["spec"]["nodeName"]) == (old["status"], "fake")

    status = deepcopy(new)
    prepare_for_update(status, old, POD, "status")
    assert status["status"]["phase"] == "Running"
    assert "nodeName" not in status["spec"]


@pytest.mark.parametrize(
    ("resources", "want"),
    [
        ({}, "BestEffort"),
        ({"requests": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m"}}, "Guaranteed"),
        ({"limits": {"nvidia.com/gpu": "1"}}, "BestEffort"),
    ],
)
def test_quality_of_service(resources, want):
    assert quality_of_service({"containers": [{"resources": resources}]}) == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("1000m", "1"),
        ("0.5", "500m"),
        ("1.5Gi", "1536Mi"),
        ("1024Mi", "1Gi"),
        ("1024", "1024"),
        ("4", "4"),
        ("100k", "100k"),
        ("1500", "1500"),
        ("1e3", "1e3"),
        ("0", "0"),
        ("0.5Ki", "512"),
        ("-1", "-1"),
    ],
)
def test_quantities_are_printed_in_their_canonical_form(text, want):
    assert canonical(text) == want
    assert quantity(canonical(text)) == quantity(text)


@pytest.mark.parametrize("text", ["", "1 Gi", "Gi", "1.2.3", "one", "1KiB"])
def test_what_is_no_quantity_is_refused(text):
    with pytest.raises(MalformedQuantity):
        canonical(text)
