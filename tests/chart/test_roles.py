"""The roles give exactly what operator/tidewheel/kube/permissions.py lists, where it is needed."""

from __future__ import annotations

import re

import pytest
from tests.chart.rendering import MATRIX, NAMESPACE, ROOT, Rendered, render

from tidewheel.kube.permissions import (
    IN_RELEASE_NAMESPACE,
    IN_WATCHED_NAMESPACES,
    IN_WHOLE_CLUSTER,
    Permission,
)


def granted(role) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def listed(permissions: tuple[Permission, ...]) -> set[tuple[str, str, str]]:
    return {(each.group, each.resource, verb) for each in permissions for verb in each.verbs}


def bound_roles(rendered: Rendered, kind: str) -> list[dict]:
    return [
        next(
            role
            for role in rendered.all(binding["roleRef"]["kind"])
            if role["metadata"]["name"] == binding["roleRef"]["name"]
            and role["metadata"].get("namespace") == binding["metadata"].get("namespace")
        )
        for binding in rendered.all(kind)
    ]


def test_cluster_wide_the_operator_gets_the_table_and_its_lease():
    rendered = render()

    (watched,) = bound_roles(rendered, "ClusterRoleBinding")
    (lease,) = bound_roles(rendered, "RoleBinding")
    assert granted(watched) == listed((*IN_WATCHED_NAMESPACES, *IN_WHOLE_CLUSTER))
    assert granted(lease) == listed(IN_RELEASE_NAMESPACE)
    assert lease["metadata"]["namespace"] == NAMESPACE


def test_by_namespace_the_operator_gets_the_table_there_and_nothing_in_the_cluster():
    rendered = render(matrix="namespaced")

    roles = {role["metadata"]["namespace"]: granted(role) for role in bound_roles(rendered, "RoleBinding")}
    assert roles == {
        "team-a": listed(IN_WATCHED_NAMESPACES),
        "team-b": listed(IN_WATCHED_NAMESPACES),
        NAMESPACE: listed(IN_RELEASE_NAMESPACE),
    }
    assert rendered.all("ClusterRole") == rendered.all("ClusterRoleBinding") == []


def test_the_release_namespace_can_be_watched_too():
    roles = bound_roles(render({"watchNamespaces": [NAMESPACE]}), "RoleBinding")

    assert sorted(map(len, map(granted, roles))) == sorted(
        [len(listed(IN_WATCHED_NAMESPACES)), len(listed(IN_RELEASE_NAMESPACE))]
    )


@pytest.mark.parametrize("matrix", MATRIX)
def test_no_role_has_a_wildcard_or_reads_secrets(matrix):
    rendered = render(matrix=matrix)
    for role in (*rendered.all("Role"), *rendered.all("ClusterRole")):
        for group, resource, verb in granted(role):
            assert "*" not in (group, resource, verb)
            assert resource != "secrets"


def test_viewers_look_and_editors_scale():
    rendered = render()
    verbs = {
        role: {
            resource: {verb for _, named, verb in granted(each) if named == resource}
            for resource in ("pdservices", "pdservices/scale", "pdservicescalers", "pdservicescalers/scale")
        }
        for role in ("view", "edit", "admin")
        for each in rendered.all("ClusterRole")
        if each["metadata"]["labels"].get(f"rbac.authorization.k8s.io/aggregate-to-{role}") == "true"
    }

    for kind in ("pdservices", "pdservicescalers"):
        assert verbs["view"][kind] == {"get", "list", "watch"}
        assert verbs["view"][f"{kind}/scale"] == {"get"}
        assert verbs["edit"][kind] >= {"create", "update", "patch", "delete"}
        assert verbs["edit"][f"{kind}/scale"] == {"get", "update", "patch"}
    assert verbs["admin"] == verbs["edit"]


def test_without_roles_the_notes_do_not_pretend():
    rendered = render(matrix="single")

    kinds = {each["kind"] for each in rendered.objects}
    assert not kinds & {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "ServiceAccount"}
    assert rendered.one("Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == "existing"


def test_the_security_page_shows_the_table():
    page = (ROOT / "docs" / "security.md").read_text()

    verbs = "|".join(["get", "list", "watch", "create", "patch", "update", "delete"])
    rows = re.findall(rf"^\| \S+ \| \S+ \| (?:(?:{verbs})(?:, )?)+ \| .*$", page, re.MULTILINE)
    assert rows == [
        f"| {each.resource} | {each.group or 'core'} | {', '.join(each.verbs)} | {each.reason} |"
        for each in (*IN_WATCHED_NAMESPACES, *IN_WHOLE_CLUSTER, *IN_RELEASE_NAMESPACE)
    ]
