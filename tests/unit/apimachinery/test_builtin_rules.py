"""Built-in objects are refused by the fields and reasons of kube-apiserver's hand-written validation."""

from __future__ import annotations

from copy import deepcopy

import pytest

from tidewheel.local.apimachinery.admission import admit, prepare_for_create
from tidewheel.local.apimachinery.builtin_rules import validate_create, validate_update
from tidewheel.local.apimachinery.decoding import decode_builtin
from tidewheel.local.apimachinery.defaulting import default_builtin
from tidewheel.local.apimachinery.fields import Gvk


def ready(obj):
    gvk = Gvk.of(obj)
    decode_builtin(obj, gvk)
    default_builtin(obj, gvk)
    admit(obj, gvk)
    prepare_for_create(obj, gvk)
    return obj


def causes(errors):
    return [(error.field, error.reason.removeprefix("FieldValue")) for error in errors]


def refused(obj):
    return causes(validate_create(ready(obj), Gvk.of(obj)))


def refused_change(old, change):
    new = deepcopy(ready(old))
    change(new)
    return causes(validate_update(new, old, Gvk.of(old)))


def test_an_ordinary_pod_is_fine(make_pod):
    assert refused(make_pod(container={"ports": [{"containerPort": 80, "name": "http"}]})) == []


@pytest.mark.parametrize(
    ("container", "spec", "want"),
    [
        ({"name": "UPPER"}, {}, ("spec.containers[0].name", "Invalid")),
        ({"name": ""}, {}, ("spec.containers[0].name", "Required")),
        ({"image": ""}, {}, ("spec.containers[0].image", "Required")),
        ({"imagePullPolicy": "Sometimes"}, {}, ("spec.containers[0].imagePullPolicy", "NotSupported")),
        ({"ports": [{"containerPort": 99999}]}, {}, ("spec.containers[0].ports[0].containerPort", "Invalid")),
        (
            {"ports": [{"containerPort": 1, "name": "a_b"}]},
            {},
            ("spec.containers[0].ports[0].name", "Invalid"),
        ),
        ({"env": [{"name": "a=b"}]}, {}, ("spec.containers[0].env[0].name", "Invalid")),
        (
            {"volumeMounts": [{"name": "v", "mountPath": "/x"}]},
            {},
            ("spec.containers[0].volumeMounts[0].name", "NotFound"),
        ),
        (
            {"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}},
            {},
            ("spec.containers[0].resources.requests", "Invalid"),
        ),
        (
            {"resources": {"requests": {"nvidia.com/gpu": "1"}}},
            {},
            ("spec.containers[0].resources.limits", "Required"),
        ),
        ({"readinessProbe": {}}, {}, ("spec.containers[0].readinessProbe", "Required")),
        (
            {"livenessProbe": {"tcpSocket": {"port": 1}, "successThreshold": 2}},
            {},
            ("spec.containers[0].livenessProbe.successThreshold", "Invalid"),
        ),
        ({}, {"restartPolicy": "Maybe"}, ("spec.restartPolicy", "NotSupported")),
        ({}, {"volumes": [{"name": "v"}, {"name": "v"}]}, ("spec.volumes[1].name", "Duplicate")),
        (
            {},
            {"volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]},
            ("spec.volumes[0].hostPath", "Forbidden"),
        ),
        ({}, {"tolerations": [{"operator": "Equal"}]}, ("spec.tolerations[0].operator", "Invalid")),
        ({}, {"activeDeadlineSeconds": 0}, ("spec.activeDeadlineSeconds", "Invalid")),
        ({}, {"nodeSelector": {"-": "x"}}, ("spec.nodeSelector", "Invalid")),
        (
            {},
            {
                "topologySpreadConstraints": [
                    {"maxSkew": 0, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}
                ]
            },
            ("spec.topologySpreadConstraints[0].maxSkew", "Invalid"),
        ),
        (
            {},
            {"initContainers": [{"name": "main", "image": "i"}]},
            ("spec.initContainers[0].name", "Duplicate"),
        ),
    ],
)
def test_a_pod_is_refused_at_its_field(make_pod, container, spec, want):
    assert refused(make_pod(container=container, **spec)) == [want]


def test_a_pod_without_containers_is_refused(make_pod):
    assert refused(make_pod() | {"spec": {"containers": []}}) == [("spec.containers", "Required")]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda spec: spec["containers"][0].update(image="img:2"), id="image"),
        pytest.param(lambda spec: spec.update(activeDeadlineSeconds=5), id="deadline"),
        pytest.param(
            lambda spec: spec["tolerations"].append({"key": "k", "operator": "Exists"}), id="more tolerations"
        ),
    ],
)
def test_some_fields_of_a_pod_may_change(make_pod, change):
    assert refused_change(make_pod(), lambda pod: change(pod["spec"])) == []


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda spec: spec.update(restartPolicy="Never"), id="restart policy"),
        pytest.param(lambda spec: spec["containers"][0].update(env=[{"name": "B"}]), id="environment"),
        pytest.param(lambda spec: spec["tolerations"].clear(), id="fewer tolerations"),
        pytest.param(
            lambda spec: spec["containers"].append({"name": "x", "image": "i"}), id="another container"
        ),
    ],
)
def test_the_rest_of_a_pods_spec_may_not_change(make_pod, change):
    assert refused_change(make_pod(), lambda pod: change(pod["spec"])) == [("spec", "Forbidden")]


def service(**spec):
    base = {"ports": [{"port": 80}], "clusterIP": "10.0.0.1", **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "n"}, "spec": base}


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        ({"ports": []}, ("spec.ports", "Required")),
        ({"ports": [{"port": 0, "targetPort": 1}]}, ("spec.ports[0].port", "Invalid")),
        ({"ports": [{"port": 1, "name": "a"}, {"port": 2}]}, ("spec.ports[1].name", "Required")),
        ({"ports": [{"port": 1, "nodePort": 30000}]}, ("spec.ports[0].nodePort", "Forbidden")),
        ({"type": "NodePort", "ports": [{"port": 1, "nodePort": 80}]}, ("spec.ports[0].nodePort", "Invalid")),
        ({"type": "Internet"}, ("spec.type", "NotSupported")),
        ({"type": "ExternalName"}, ("spec.externalName", "Required")),
        ({"selector": {"a": "b c"}}, ("spec.selector", "Invalid")),
    ],
)
def test_a_service_is_refused_at_its_field(spec, want):
    assert refused(service(**spec)) == [want]


def test_a_headless_service_needs_no_ports_and_keeps_being_headless():
    assert refused(service(clusterIP="None", ports=[])) == []
    headless = service(clusterIP="None")
    change = refused_change(headless, lambda new: new["spec"].update(clusterIP="10.0.0.1"))
    assert change == [("spec.clusterIPs[0]", "Invalid")]


def workload(kind="Deployment", **spec):
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": "d", "namespace": "n"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template, **spec},
    }


@pytest.mark.parametrize(
    ("obj", "want"),
    [
        (workload(), []),
        (workload(replicas=-1), [("spec.replicas", "Invalid")]),
        (workload(selector={"matchLabels": {"a": "c"}}), [("spec.template.metadata.labels", "Invalid")]),
        (
            workload(strategy={"type": "Recreate", "rollingUpdate": {}}),
            [("spec.strategy.rollingUpdate", "Forbidden")],
        ),
        (
            workload(template={"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}),
            [("spec.template.spec.containers", "Required")],
        ),
        (workload("StatefulSet", serviceName="s"), []),
    ],
)
def test_a_workload_is_refused_at_its_field(obj, want):
    assert refused(deepcopy(obj)) == want


def test_the_selector_of_a_deployment_is_immutable():
    def change(new):
        new["spec"]["selector"]["matchLabels"] = new["spec"]["template"]["metadata"]["labels"] = {"a": "z"}

    assert refused_change(workload(), change) == [("spec.selector", "Invalid")]


@pytest.mark.parametrize(
    ("obj", "want"),
    [
        ({"kind": "ConfigMap", "data": {"a/b": ""}}, ("data[a/b]", "Invalid")),
        ({"kind": "ConfigMap", "data": {"a": "x" * (1 << 20) + "x"}}, ("", "TooLong")),
        (
            {"kind": "Secret", "type": "kubernetes.io/tls", "data": {"tls.crt": ""}},
            ("data[tls.key]", "Required"),
        ),
        (
            {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": {"leaseDurationSeconds": 0}},
            ("spec.leaseDurationSeconds", "Invalid"),
        ),
        (
            {"kind": "Event", "involvedObject": {"namespace": "other"}},
            ("involvedObject.namespace", "Invalid"),
        ),
        (
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "Role",
                "rules": [{"verbs": [], "apiGroups": [""], "resources": ["pods"]}],
            },
            ("rules[0].verbs", "Required"),
        ),
        (
            {
                "apiVersion": "policy/v1",
                "kind": "PodDisruptionBudget",
                "spec": {"minAvailable": 1, "maxUnavailable": 1},
            },
            ("spec", "Invalid"),
        ),
        (
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "spec": {"template": {"spec": {"containers": [{"name": "a", "image": "i"}]}}},
            },
            ("spec.template.spec.restartPolicy", "Required"),
        ),
    ],
)
def test_other_kinds_are_refused_at_their_field(obj, want):
    assert refused({"apiVersion": "v1", "metadata": {"name": "x", "namespace": "n"}, **obj}) == [want]


def test_immutable_contents_may_not_change():
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "c", "namespace": "n"},
        "data": {"a": "1"},
        "immutable": True,
    }
    assert refused_change(config, lambda new: new["data"].update(a="2")) == [("data", "Forbidden")]


@pytest.mark.parametrize(
    ("metadata", "want"),
    [
        ({"name": "Bad_8"}, [("metadata.name", "Invalid")]),
        ({"name": None}, [("metadata.name", "Required")]),
        ({"namespace": None}, [("metadata.namespace", "Required")]),
        ({"labels": {"a b": "c"}}, [("metadata.labels", "Invalid")]),
        ({"labels": {"a": "c d"}}, [("metadata.labels", "Invalid")]),
        ({"annotations": {"a/b/c": ""}}, [("metadata.annotations", "Invalid")]),
        ({"annotations": {"a": "x" * (257 * 1024)}}, [("metadata.annotations", "TooLong")]),
        ({"finalizers": ["hold"]}, [("metadata.finalizers", "Invalid")]),
        (
            {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "x"}]},
            [("metadata.ownerReferences[0].uid", "Invalid")],
        ),
    ],
)
def test_metadata_is_refused_at_its_field(metadata, want):
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "c", "namespace": "n", **metadata},
    }
    assert refused(config) == want


@pytest.mark.parametrize(
    ("api_version", "kind", "name", "is_fine"),
    [
        ("v1", "Namespace", "a.b", False),
        ("v1", "Service", "1a", False),
        ("v1", "Node", "a.b", True),
        ("rbac.authorization.k8s.io/v1", "ClusterRole", "system:Node", True),
        ("rbac.authorization.k8s.io/v1", "ClusterRole", "a/b", False),
    ],
)
def test_each_kind_has_its_own_names(api_version, kind, name, is_fine):
    obj = {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}}
    if kind == "Service":
        obj = {**service(), "metadata": {"name": name, "namespace": "n"}}
    assert [cause for cause in refused(obj) if cause[0] == "metadata.name"] == (
        [] if is_fine else [("metadata.name", "Invalid")]
    )


def test_the_identity_of_an_object_is_immutable(make_pod):
    assert (
        refused_change(make_pod(), lambda pod: pod["metadata"].update(uid="x"))
        == [("metadata.uid", "Invalid")] * 2
    )


def test_a_bad_crd_is_refused_as_any_other_kind(gadget_crd):
    gadget_crd["metadata"]["name"] = "wrong"
    assert refused(gadget_crd) == [("metadata.name", "Invalid")]
