"""The session's cluster, its operator, and a namespace for each test."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.cluster import (
    Cluster,
    Namespace,
    Process,
    eventually,
    lease_holder,
    local_cluster,
    other_cluster,
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """`tidewheel up`, or the cluster of TIDEWHEEL_E2E_KUBECONFIG."""
    directory = tmp_path_factory.mktemp("cluster")
    kubeconfig = os.environ.get("TIDEWHEEL_E2E_KUBECONFIG")
    with other_cluster(Path(kubeconfig), directory) if kubeconfig else local_cluster(directory) as running:
        yield running


@pytest.fixture(scope="session")
def operator(cluster: Cluster) -> Iterator[Process]:
    """The one operator that tests share, unless they bring their own."""
    process = cluster.operator("shared-operator").start()
    eventually(lambda: "leading" in process.tail().lower() or "leader" in process.tail().lower(), process)
    yield process
    process.stop()


@contextlib.contextmanager
def _fresh_namespace(cluster: Cluster) -> Iterator[Namespace]:
    name = f"t-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name)
    yield Namespace(cluster, name)
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def empty_namespace(cluster: Cluster) -> Iterator[Namespace]:
    """A namespace without an operator that is known to run."""
    with _fresh_namespace(cluster) as namespace:
        yield namespace


@pytest.fixture(scope="module")
def module_namespace(cluster: Cluster, operator: Process) -> Iterator[Namespace]:
    """A namespace that the tests of one module share."""
    assert operator.is_running
    with _fresh_namespace(cluster) as namespace:
        yield namespace


@pytest.fixture
def namespace(operator: Process, empty_namespace: Namespace) -> Namespace:
    """A namespace that the shared operator looks after."""
    assert operator.is_running
    return empty_namespace


@pytest.fixture
def own_cluster(cluster: Cluster, operator: Process) -> Iterator[Cluster]:
    """The session's cluster while its shared operator is stopped, for tests that bring their own."""
    operator.stop()
    yield cluster
    operator.start()
    eventually(lambda: lease_holder(cluster).startswith("shared-operator"), operator)
