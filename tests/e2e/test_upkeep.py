"""What happens to services that serve already: looked at again, nothing; a newer CRD under them, nothing but new fields."""

from __future__ import annotations

import copy
import urllib.request
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e.cluster import ROOT, Cluster, Namespace, eventually, pd_service
from tests.ports import free_port

CRD = "pdservices.tidewheel.dev"


def test_resyncs_of_a_settled_service_write_nothing(own_cluster: Cluster, empty_namespace: Namespace) -> None:
    metrics = f"127.0.0.1:{free_port()}"
    operator = own_cluster.operator(
        "resyncing",
        *("--no-leader-election", "--namespace", empty_namespace.name),
        *("--resync-seconds", "1", "--metrics-address", metrics),
    ).start()
    try:
        empty_namespace.apply(pd_service())
        empty_namespace.wait_settled()

        def three_resyncs_without_a_write() -> bool:
            reconciles, writes = _reconciles_and_writes(metrics)
            eventually(lambda: _reconciles_and_writes(metrics)[0] >= reconciles + 3, operator)
            return _reconciles_and_writes(metrics)[1] == writes

        assert eventually(three_resyncs_without_a_write, operator)
    finally:
        operator.stop()


def _reconciles_and_writes(metrics_address: str) -> tuple[float, float]:
    with urllib.request.urlopen(f"http://{metrics_address}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    reconciles = writes = 0.0
    for sample in (sample for family in families for sample in family.samples):
        if sample.name == "controller_runtime_reconcile_total":
            reconciles += sample.value
        elif sample.name == "rest_client_requests_total" and sample.labels["method"] != "GET":
            writes += sample.value
    return reconciles, writes


def test_the_crd_is_upgraded_under_services_that_go_on_serving(namespace: Namespace) -> None:
    cluster = namespace.cluster
    current = yaml.safe_load((ROOT / f"crds/{CRD}.yaml").read_text())
    older = copy.deepcopy(current)
    for version in older["spec"]["versions"]:
        del version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["drainSeconds"]
    plain = pd_service()
    del plain["spec"]["drainSeconds"]
    try:
        apply_crd(cluster, older)
        eventually(lambda: "drainSeconds" not in stored_defaults(namespace, plain))
        namespace.apply(plain)
        before = namespace.wait_settled()
        assert "drainSeconds" not in before["spec"]
        pods = {pod["metadata"]["uid"] for pod in namespace.pods()}
    finally:
        apply_crd(cluster, current)

    eventually(lambda: namespace.get("pds", "chat")["spec"].get("drainSeconds") == 30)
    after = namespace.wait_settled()
    for kept in ("uid", "generation"):
        assert after["metadata"][kept] == before["metadata"][kept]
    namespace.kubectl("patch", "pds", "chat", "--type=merge", "-p", '{"spec":{"drainSeconds":7}}')
    assert namespace.wait_settled()["spec"]["drainSeconds"] == 7
    assert {pod["metadata"]["uid"] for pod in namespace.pods()} == pods


def apply_crd(cluster: Cluster, crd: dict[str, Any]) -> None:
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=yaml.safe_dump(crd))


def stored_defaults(namespace: Namespace, manifest: dict[str, Any]) -> dict[str, Any]:
    """The spec that the server would store, as far as its schema has reached it."""
    created = namespace.kubectl(
        "create", "--dry-run=server", "-o", "yaml", "-f", "-", stdin=yaml.safe_dump(manifest)
    )
    return dict(yaml.safe_load(created)["spec"])
