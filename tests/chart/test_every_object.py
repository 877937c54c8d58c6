"""What holds for every object of every entry of the values matrix."""

from __future__ import annotations

import kubernetes_validate
import pytest
from tests.chart.pod_security import restricted_violations
from tests.chart.rendering import CHART, MATRIX, NAMESPACE, helm, render, values_file

pytestmark = pytest.mark.parametrize("matrix", MATRIX)

CLUSTER_WIDE = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}


def test_helm_lints_it_strictly(matrix):
    helm("lint", "--strict", CHART, "--values", values_file(matrix))


def test_every_object_carries_the_standard_labels(matrix):
    for each in render(matrix=matrix).objects:
        labels = each["metadata"]["labels"]
        wanted = {
            "app.kubernetes.io/name": "tidewheel",
            "app.kubernetes.io/instance": "tidewheel",
            "app.kubernetes.io/part-of": "tidewheel",
            "app.kubernetes.io/managed-by": "Helm",
            "app.kubernetes.io/version": "0.1.0",
            "helm.sh/chart": "tidewheel-0.1.0",
        }
        assert wanted.items() <= labels.items(), f"{each['kind']} {each['metadata']['name']}"


def test_every_object_says_its_namespace_unless_it_has_none(matrix):
    for each in render(matrix=matrix).objects:
        assert ("namespace" in each["metadata"]) == (each["kind"] not in CLUSTER_WIDE), each["kind"]


def test_no_name_stands_twice(matrix):
    names = [
        (each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"])
        for each in render(matrix=matrix).objects
    ]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_every_built_in_object_fits_the_schema_of_kubernetes(matrix, version):
    for each in render(matrix=matrix).objects:
        if each["kind"] not in ("ServiceMonitor", "PrometheusRule"):
            kubernetes_validate.validate(each, version, strict=True)


def test_every_pod_meets_the_restricted_standard(matrix):
    rendered = render(matrix=matrix)
    specs = [each["spec"]["template"]["spec"] for each in rendered.all("Deployment")]
    specs += [each["spec"] for each in rendered.all("Pod")]

    assert len(specs) == 2
    for spec in specs:
        assert restricted_violations(spec) == []
        for container in spec["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]


def test_every_variable_stands_once(matrix):
    names = [variable["name"] for variable in render(matrix=matrix).operator["env"]]
    assert len(names) == len(set(names))


def test_selectors_find_the_operators_pods_and_nothing_else_does(matrix):
    rendered = render(matrix=matrix)
    labels = rendered.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        rendered.one("Deployment")["spec"]["selector"]["matchLabels"],
        rendered.one("Service")["spec"]["selector"],
        *(each["spec"]["selector"]["matchLabels"] for each in rendered.all("PodDisruptionBudget")),
        *(each["spec"]["podSelector"]["matchLabels"] for each in rendered.all("NetworkPolicy")),
    ]
    test_pod = rendered.one("Pod")["metadata"]["labels"]

    for selector in selectors:
        assert selector.items() <= labels.items()
        assert not selector.items() <= test_pod.items()


def test_subjects_and_references_lead_somewhere(matrix):
    rendered = render(matrix=matrix)
    account = rendered.one("Deployment")["spec"]["template"]["spec"]["serviceAccountName"]
    for binding in (*rendered.all("RoleBinding"), *rendered.all("ClusterRoleBinding")):
        reference, namespace = binding["roleRef"], binding["metadata"].get("namespace")
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}]
        assert any(
            (role["metadata"]["name"], role["metadata"].get("namespace")) == (reference["name"], namespace)
            for role in rendered.all(reference["kind"])
        )
