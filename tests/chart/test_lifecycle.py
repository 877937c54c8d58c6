"""A release of the chart from install to uninstall: the real helm and kubectl against the local cluster's API server."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.chart.rendering import CHART, ROOT
from tests.local.apiserver.conftest import KUBECONFIG, ServerThread

from tidewheel.local.tools import find_tool

pytestmark = pytest.mark.slow

NAMESPACE = ("--namespace", "tidewheel-system")
Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Runs helm or kubectl against a fresh API server; gives what it prints and raises what it complains of."""
    server = ServerThread()
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG.format(url=server.url))
    tools = {name: find_tool(name) for name in ("helm", "kubectl")}
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "HOME": str(tmp_path)}

    def run(tool: str, *arguments: str | Path) -> str:
        done = subprocess.run(
            [tools[tool], *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        return done.stdout.strip()

    yield run
    server.stop()


def names(run: Run, kinds: str, *arguments: str) -> set[str]:
    return {
        name.rpartition("/")[2] for name in run("kubectl", "get", kinds, "-o", "name", *arguments).split()
    }


def test_a_release_is_installed_upgraded_rolled_back_and_uninstalled(run: Run):
    def replicas() -> str:
        return run("kubectl", "get", "deployment/tidewheel", *NAMESPACE, "-o", "jsonpath={.spec.replicas}")

    run("helm", "install", "tidewheel", CHART, *NAMESPACE, "--create-namespace")
    assert replicas() == "2"
    assert names(run, "pdb,service,sa", *NAMESPACE) == {"tidewheel", "default"}
    run(
        "helm", "upgrade", "tidewheel", CHART, *NAMESPACE, "--reset-then-reuse-values", "--set=replicaCount=3"
    )
    assert replicas() == "3"
    run("helm", "rollback", "tidewheel", "1", *NAMESPACE)
    assert replicas() == "2"
    history = json.loads(run("helm", "history", "tidewheel", *NAMESPACE, "-o", "json"))
    assert [revision["status"] for revision in history] == ["superseded", "superseded", "deployed"]

    assert "were kept" in run("helm", "uninstall", "tidewheel", *NAMESPACE)
    assert names(run, "deployment,service,pdb,role,rolebinding,secret", *NAMESPACE) == set()
    assert "tidewheel-system-tidewheel" not in names(run, "clusterrole,clusterrolebinding")
    assert names(run, "crd") == {"pdservices.tidewheel.dev", "pdservicescalers.tidewheel.dev"}
    # The kept CRDs do not stand in the way of the next release.
    run("helm", "install", "tidewheel", CHART, *NAMESPACE)


def test_crds_of_somebody_else_are_taken_over_only_when_asked(run: Run):
    run("kubectl", "apply", "--server-side", "-f", ROOT / "crds")

    with pytest.raises(RuntimeError, match="invalid ownership metadata"):
        run("helm", "install", "tidewheel", CHART, *NAMESPACE, "--create-namespace")
    take_over = ("--take-ownership", "--force-conflicts")
    run("helm", "install", "tidewheel", CHART, *NAMESPACE, "--create-namespace", *take_over)


def test_a_release_for_some_namespaces_leaves_the_cluster_alone(run: Run):
    before = names(run, "crd,clusterrole,clusterrolebinding")
    run("kubectl", "create", "namespace", "team-a")

    values = ("crds.enabled=false", "rbac.aggregateRoles=false", "watchNamespaces={team-a}")
    run("helm", "install", "tidewheel", CHART, "-n", "team-a", *(f"--set={value}" for value in values))

    assert names(run, "crd,clusterrole,clusterrolebinding") == before
    assert names(run, "role", "-n", "team-a") == {"team-a-tidewheel", "tidewheel-leader-election"}
