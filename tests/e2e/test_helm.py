"""The real helm on our chart: the operator it installs runs in the cluster and does its work."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from tests.e2e.cluster import ROOT, Cluster, Namespace, Process, eventually, pd_service

CHART = str(ROOT / "charts/tidewheel")


@pytest.fixture(scope="module")
def release(cluster: Cluster, operator: Process) -> Iterator[Namespace]:
    """A namespace for the release, while the session's own operator is stopped."""
    operator.stop()
    name = "tidewheel-system"
    cluster.kubectl("create", "namespace", name)
    yield Namespace(cluster, name)
    cluster.run("uninstall", "tidewheel", "-n", name, "--ignore-not-found", tool="helm")
    cluster.kubectl("delete", "namespace", name, "--wait=false")
    operator.start()
    eventually(lambda: "lead" in operator.tail().lower(), operator)


def helm(release: Namespace, *arguments: str) -> str:
    done = release.cluster.run(*arguments, "-n", release.name, tool="helm")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_lint_is_strict_and_clean(release: Namespace) -> None:
    assert "0 chart(s) failed" in helm(release, "lint", "--strict", CHART)


def test_bad_values_are_refused_with_their_path(release: Namespace) -> None:
    done = release.cluster.run(
        "install", "bad", CHART, "-n", release.name, "--set", "replicaCount=many", tool="helm"
    )
    assert done.returncode != 0
    assert "replicaCount" in done.stderr


@pytest.mark.timeout(600)
def test_install_serve_upgrade_rollback_uninstall(release: Namespace) -> None:
    cluster = release.cluster
    # The CRDs are there already; a release on a fresh cluster brings them.
    values = ("--set", "crds.enabled=false", "--set", "replicaCount=2")
    helm(release, "install", "tidewheel", CHART, *values, "--wait", "--timeout", "120s")
    assert "tidewheel" in helm(release, "get", "notes", "tidewheel")
    if cluster.is_local:  # another cluster's Services need its own proxy on this machine
        helm(release, "test", "tidewheel", "--timeout", "60s")

    work = f"{release.name}-work"
    cluster.run("create", "namespace", work)
    namespace = Namespace(cluster, work)
    try:
        namespace.apply(pd_service())
        namespace.wait_settled()

        helm(
            release,
            "upgrade",
            "tidewheel",
            CHART,
            *values,
            "--set",
            "concurrency=2",
            "--wait",
            "--timeout",
            "120s",
        )
        helm(release, "rollback", "tidewheel", "1", "--wait", "--timeout", "120s")
        history = json.loads(helm(release, "history", "tidewheel", "-o", "json"))
        assert [entry["status"] for entry in history] == ["superseded", "superseded", "deployed"]
        namespace.kubectl("scale", "pds", "chat", "--replicas=2")
        assert namespace.wait_settled()["status"]["readyGroups"] == 2

        helm(release, "uninstall", "tidewheel", "--wait")
        assert cluster.get("crd", "pdservices.tidewheel.dev")
        assert len(namespace.pods("decode")) == 2, "what serves goes on serving without an operator"
    finally:
        cluster.kubectl("delete", "namespace", work, "--wait=false")
