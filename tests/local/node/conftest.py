"""A cluster for each test of this folder: it takes some hundredths of a second to start."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tidewheel.kube.client import Api
from tidewheel.local.cluster import LocalCluster, local_cluster
from tidewheel.local.node.backoff import BackOffRule
from tidewheel.local.nodes import NodesFile


@pytest.fixture
async def cluster() -> AsyncIterator[LocalCluster]:
    """A cluster with two plain nodes, whose containers restart after tenths of a second."""
    rule = BackOffRule(first_seconds=0.2, most_seconds=0.4)
    nodes = NodesFile.model_validate(
        {
            "nodes": [{"name": "a", "capacity": {"cpu": "8"}}, {"name": "b", "capacity": {"cpu": "8"}}],
            "images": [{"prefix": "missing/", "absent": True}],
        }
    )
    async with local_cluster(with_crds=False, nodes_file=nodes, back_off=rule) as running:
        yield running


@pytest.fixture
def api(cluster: LocalCluster) -> Api:
    """A client to the cluster."""
    return cluster.api
