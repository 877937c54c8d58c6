"""The real kubectl against the local API server."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from tests.local.apiserver.conftest import GADGET_CRD

from tidewheel.local.tools import find_tool

pytestmark = pytest.mark.slow

GADGET = """\
apiVersion: test.example.com/v1
kind: Gadget
metadata: {{name: {name}}}
spec: {{size: {size}}}
"""
DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      containers:
        - {{name: main, image: "{image}", env: [{{name: A, value: "1"}}]}}
        - {{name: side, image: side}}
"""


class Kubectl:
    """Runs kubectl and gives what it printed."""

    def __init__(self, kubeconfig: Path, home: Path) -> None:
        self._kubectl = str(find_tool("kubectl"))
        self._environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "HOME": str(home)}

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._kubectl, *arguments],
            input=stdin,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="module")
def kubectl(kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    made = Kubectl(kubeconfig, tmp_path_factory.mktemp("home"))
    made("apply", "-f", "-", stdin=json.dumps(GADGET_CRD))
    made("wait", "--for=condition=Established", "crd/gadgets.test.example.com")
    return made


def apply_gadget(kubectl: Kubectl, name: str, *, size: int = 1) -> str:
    return kubectl("apply", "-f", "-", stdin=GADGET.format(name=name, size=size))


def test_it_finds_out_what_is_served(kubectl: Kubectl):
    assert "Server Version: v1.36" in kubectl("version")
    listed = kubectl("api-resources", "--api-group=test.example.com", "--no-headers")
    assert listed.split() == ["gadgets", "gd", "test.example.com/v1", "true", "Gadget"]


def test_apply_creates_configures_and_sees_when_nothing_changed(kubectl: Kubectl):
    assert apply_gadget(kubectl, "a").endswith("created")
    assert apply_gadget(kubectl, "a").endswith("unchanged")
    assert apply_gadget(kubectl, "a", size=2).endswith("configured")


def test_apply_refuses_what_the_schema_does_not_know(kubectl: Kubectl):
    done = kubectl.run("apply", "-f", "-", stdin=GADGET.format(name="bad", size="1, typo: 2"))
    assert done.returncode != 0
    assert 'unknown field "spec.typo"' in done.stderr
    done = kubectl.run("apply", "-f", "-", stdin=GADGET.format(name="bad", size=-1))
    assert "spec.size: Invalid value: -1" in done.stderr


def test_a_server_side_apply_knows_its_conflicts(kubectl: Kubectl):
    first = ("apply", "--server-side", "--field-manager=one", "-f", "-")
    second = ("apply", "--server-side", "--field-manager=two", "-f", "-")
    assert kubectl(*first, stdin=GADGET.format(name="ssa", size=1)).endswith("serverside-applied")
    done = kubectl.run(*second, stdin=GADGET.format(name="ssa", size=2))
    assert 'conflict with "one": .spec.size' in done.stderr
    kubectl(*second, "--force-conflicts", stdin=GADGET.format(name="ssa", size=2))
    assert kubectl("get", "gd", "ssa", "-o", "jsonpath={.spec.size}") == "2"


def test_apply_merges_lists_of_built_in_kinds_by_key(kubectl: Kubectl):
    kubectl("apply", "-f", "-", stdin=DEPLOYMENT.format(image="main:1"))
    kubectl("set", "env", "deploy/web", "--containers=side", "B=2")
    assert kubectl("apply", "-f", "-", stdin=DEPLOYMENT.format(image="main:2")).endswith("configured")
    containers = json.loads(
        kubectl("get", "deploy", "web", "-o", "jsonpath={.spec.template.spec.containers}")
    )
    assert [one["image"] for one in containers] == ["main:2", "side"]
    assert containers[1]["env"] == [{"name": "B", "value": "2"}]


def test_diff_shows_what_an_apply_would_change(kubectl: Kubectl):
    apply_gadget(kubectl, "d")
    done = kubectl.run("diff", "-f", "-", stdin=GADGET.format(name="d", size=7))
    assert done.returncode == 1
    assert "+  size: 7" in done.stdout


def test_get_shows_the_printer_columns(kubectl: Kubectl):
    apply_gadget(kubectl, "shown", size=3)
    assert kubectl("get", "gd", "shown", "--no-headers").split() == ["shown", "3"]
    assert "size: 3" in kubectl("get", "gd", "shown", "-o", "yaml")
    assert "shown" in kubectl("get", "toys", "-o", "name")


def test_describe_shows_an_object_with_its_events(kubectl: Kubectl):
    apply_gadget(kubectl, "told")
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "told.1", "namespace": "default"},
        "involvedObject": {
            "apiVersion": "test.example.com/v1",
            "kind": "Gadget",
            "name": "told",
            "namespace": "default",
        },
        "reason": "Grown",
        "message": "it is bigger now",
        "type": "Normal",
    }
    uid = kubectl("get", "gd", "told", "-o", "jsonpath={.metadata.uid}")
    event["involvedObject"]["uid"] = uid
    kubectl("create", "-f", "-", stdin=json.dumps(event))
    assert "it is bigger now" in kubectl("describe", "gd", "told")
    assert "it is bigger now" in kubectl("get", "events", "--field-selector", "involvedObject.name=told")
    kubectl("run", "pod", "--image=none")
    assert "QoS Class:        BestEffort" in kubectl("describe", "pod", "pod")


def test_explain_reads_the_schema(kubectl: Kubectl):
    assert "spec is what the gadget shall be." in kubectl("explain", "gadgets.spec")
    assert "size is its size." in kubectl("explain", "gd.spec.size")
    assert "Compute Resources required" in kubectl("explain", "pod.spec.containers.resources")


def test_scale_patch_label_annotate(kubectl: Kubectl):
    apply_gadget(kubectl, "p")
    kubectl("scale", "gd", "p", "--replicas=4")
    kubectl("patch", "gd", "p", "--type=merge", "-p", '{"spec":{"colour":"blue"}}')
    kubectl("patch", "gd", "p", "--type=json", "-p", '[{"op":"replace","path":"/spec/size","value":5}]')
    kubectl("label", "gd", "p", "a=b")
    kubectl("annotate", "gd", "p", "c=d")
    shown = json.loads(kubectl("get", "gd", "p", "-o", "json"))
    assert shown["spec"] == {"size": 5, "colour": "blue"}
    assert (shown["metadata"]["labels"], shown["metadata"]["annotations"]["c"]) == ({"a": "b"}, "d")
    kubectl("create", "configmap", "cm", "--from-literal=a=1")
    kubectl("patch", "configmap", "cm", "-p", '{"data":{"b":"2"}}')
    assert kubectl("get", "cm", "cm", "-o", "jsonpath={.data}") == '{"a":"1","b":"2"}'


def test_wait_ends_when_the_condition_is_met(kubectl: Kubectl):
    apply_gadget(kubectl, "w")
    kubectl(
        "patch",
        "gd",
        "w",
        "--subresource=status",
        "--type=merge",
        "-p",
        '{"status":{"conditions":[{"type":"Ready","status":"True"}]}}',
    )
    assert kubectl("wait", "--for=condition=Ready", "gd/w", "--timeout=20s").endswith("condition met")


@pytest.mark.parametrize("cascade", ["background", "foreground", "orphan"])
def test_delete_cascades_as_asked(kubectl: Kubectl, cascade: str):
    apply_gadget(kubectl, "owner")
    uid = kubectl("get", "gd", "owner", "-o", "jsonpath={.metadata.uid}")
    owner = f"{{apiVersion: test.example.com/v1, kind: Gadget, name: owner, uid: {uid}, blockOwnerDeletion: true}}"
    child = f"{{apiVersion: v1, kind: ConfigMap, metadata: {{name: child, ownerReferences: [{owner}]}}}}"
    kubectl("apply", "-f", "-", stdin=child)
    kubectl("delete", "gd", "owner", f"--cascade={cascade}")
    if cascade == "orphan":
        assert kubectl("get", "cm", "child", "-o", "jsonpath={.metadata.ownerReferences}") == ""
        kubectl("delete", "cm", "child")
    else:
        kubectl("wait", "--for=delete", "cm/child", "--timeout=20s")


def test_rollout_status_follows_a_deployment(kubectl: Kubectl):
    kubectl("apply", "-f", "-", stdin=DEPLOYMENT.format(image="main:1").replace("web", "rolled"))
    generation = int(kubectl("get", "deploy", "rolled", "-o", "jsonpath={.metadata.generation}"))
    status = {
        "observedGeneration": generation,
        "replicas": 2,
        "updatedReplicas": 2,
        "availableReplicas": 2,
        "readyReplicas": 2,
    }
    kubectl(
        "patch",
        "deploy",
        "rolled",
        "--subresource=status",
        "--type=merge",
        "-p",
        json.dumps({"status": status}),
    )
    assert "successfully rolled out" in kubectl("rollout", "status", "deploy/rolled", "--timeout=20s")


def test_questions_about_rights_are_answered(kubectl: Kubectl):
    assert kubectl("auth", "can-i", "create", "gadgets") == "yes"
    assert "kubernetes-admin" in kubectl("auth", "whoami")
    assert len(kubectl("create", "token", "default")) > 40
