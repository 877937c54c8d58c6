"""The real kubectl on PDServices: every command a user would reach for."""

from __future__ import annotations

import json
import subprocess

import pytest
from tests.e2e.cluster import Namespace, Refused, eventually, pd_service

from tidewheel.local.tools import find_tool


@pytest.fixture(scope="module")
def namespace(module_namespace: Namespace) -> Namespace:
    module_namespace.apply(pd_service())
    module_namespace.wait_settled()
    return module_namespace


def test_apply_tells_created_configured_and_unchanged(namespace: Namespace) -> None:
    assert "unchanged" in namespace.apply(pd_service())
    assert "created" in namespace.apply(pd_service("second", suspend=True))
    assert "configured" in namespace.apply(pd_service("second", suspend=True, groups=2))
    namespace.kubectl("delete", "pds", "second")


def test_server_side_apply_conflicts_with_another_manager_and_can_be_forced(namespace: Namespace) -> None:
    one = ("apply", "--server-side", "--field-manager=one", "-f", "-")
    two = ("apply", "--server-side", "--field-manager=two", "-f", "-")
    assert "serverside-applied" in namespace.kubectl(
        *one, stdin=json.dumps(pd_service("shared", suspend=True))
    )
    other = json.dumps(pd_service("shared", suspend=True, groups=3))
    with pytest.raises(Refused, match="conflict"):
        namespace.kubectl(*two, stdin=json.dumps(pd_service("shared", suspend=False)))
    assert "serverside-applied" in namespace.kubectl(*two, "--force-conflicts", stdin=other)
    assert namespace.get("pds", "shared")["spec"]["groups"] == 3
    namespace.kubectl("delete", "pds", "shared")


def test_diff_shows_what_would_change_and_changes_nothing(namespace: Namespace) -> None:
    done = namespace.cluster.run(
        "-n", namespace.name, "diff", "-f", "-", stdin=json.dumps(pd_service(groups=2))
    )
    assert done.returncode == 1
    assert "+  groups: 2" in done.stdout
    assert namespace.get("pds", "chat")["spec"]["groups"] == 1
    unchanged = namespace.cluster.run("-n", namespace.name, "diff", "-f", "-", stdin=json.dumps(pd_service()))
    assert (unchanged.returncode, unchanged.stdout) == (0, "")


def test_get_shows_the_columns_and_the_short_name_and_the_category_work(namespace: Namespace) -> None:
    header, row = namespace.kubectl("get", "pds").splitlines()[:2]
    assert header.split() == ["NAME", "READY", "REASON", "GROUPS", "PREFILL", "DECODE", "GATEWAY", "AGE"]
    assert row.split()[:7] == ["chat", "True", "Serving", "1", "1/1", "1/1", "1/1"]
    wide = namespace.kubectl("get", "pds", "-o", "wide").splitlines()[0].split()
    only_wide = ["MODEL", "RATIO", "NEEDED", "BOTTLENECK", "REVISION", "ADDRESS"]
    assert [name for name in wide if name not in header.split()] == only_wide
    assert "chat" in namespace.kubectl("get", "tidewheel")
    assert "kind: PDService" in namespace.kubectl("get", "pds", "chat", "-o", "yaml")


def test_describe_tells_conditions_decisions_and_events(namespace: Namespace) -> None:
    described = namespace.kubectl("describe", "pds", "chat")
    for part in ("Conditions:", "Decisions:", "Events:", "Serving"):
        assert part in described


def test_explain_gives_the_models_descriptions(namespace: Namespace) -> None:
    explained = namespace.kubectl("explain", "pdservice.spec.gateway.ttftDeadlineSeconds")
    assert "how long a request may wait for a free prefill slot" in " ".join(explained.split())


def test_patch_and_label_and_wait(namespace: Namespace) -> None:
    namespace.kubectl("label", "pds", "chat", "team=search")
    assert "chat" in namespace.kubectl("get", "pds", "-l", "team=search", "-o", "name")
    namespace.kubectl(
        "patch", "pds", "chat", "--type=json", "-p", '[{"op":"add","path":"/spec/drainSeconds","value":4}]'
    )
    namespace.kubectl("patch", "pds", "chat", "--type=merge", "-p", '{"spec":{"drainSeconds":5}}')
    assert "condition met" in namespace.kubectl("wait", "--for=condition=Ready", "pds/chat", "--timeout=60s")


def test_logs_follow_a_running_pod(namespace: Namespace) -> None:
    pod = namespace.pods("gateway")[0]["metadata"]["name"]
    assert namespace.kubectl("logs", pod, "--tail=5")
    command = [str(find_tool("kubectl")), "-n", namespace.name, "logs", "-f", "--tail=1", pod]
    with subprocess.Popen(
        command,
        env={"KUBECONFIG": str(namespace.cluster.kubeconfig), "HOME": str(namespace.cluster.directory)},
        stdout=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        assert following.stdout.readline()
        assert following.poll() is None, "it goes on following"
        following.terminate()


def test_events_tell_what_happened_to_the_service(namespace: Namespace) -> None:
    assert eventually(lambda: "pdservice/chat" in namespace.kubectl("get", "events").lower())


@pytest.mark.parametrize("cascade", ["background", "foreground", "orphan"])
def test_delete_cascades_as_asked(namespace: Namespace, cascade: str) -> None:
    name = f"del-{cascade}"
    namespace.apply(pd_service(name))
    namespace.wait_ready(name)
    namespace.kubectl("delete", "pds", name, f"--cascade={cascade}")
    selector = ("pods,services,configmaps", "-l", f"tidewheel.dev/service={name}")
    if cascade == "orphan":
        left = namespace.get(*selector)["items"]
        assert {item["kind"] for item in left} == {"Pod", "Service", "ConfigMap"}
        assert not any(item["metadata"].get("ownerReferences") for item in left)
        namespace.kubectl("delete", *selector)
    assert eventually(lambda: not namespace.get(*selector)["items"])
