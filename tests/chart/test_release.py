"""What single values change in the objects of a release."""

from __future__ import annotations

import pytest
import yaml
from tests.chart.pod_security import restricted_violations
from tests.chart.rendering import CHART, MATRIX, NAMESPACE, ROOT, Refused, Rendered, helm, render, values_file

from tidewheel import cli
from tidewheel.api.pdservice import PDService
from tidewheel.controllers.defaults import accelerator_table
from tidewheel.controllers.settings import Address


def arguments(rendered) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for argument in rendered.operator["args"]:
        name, _, value = argument.partition("=")
        found.setdefault(name, []).append(value)
    return found


def environment(rendered) -> dict[str, str]:
    return {variable["name"]: variable.get("value", "") for variable in rendered.operator["env"]}


def config(rendered) -> list[dict]:
    return yaml.safe_load(rows_of(rendered))


def rows_of(rendered: Rendered) -> str:
    """The operator's accelerator table, as text."""
    (text,) = (
        each["data"]["accelerators.yaml"]
        for each in rendered.all("ConfigMap")
        if "accelerators.yaml" in each["data"]
    )
    return text


def test_the_operator_is_told_everything_by_flags():
    rendered = render()

    assert rendered.operator["command"] == ["tidewheel", "operator"]
    assert arguments(rendered) == {
        "--worker-image": ["ghcr.io/tidewheel/worker:0.1.0"],
        "--accelerators": ["/etc/tidewheel/accelerators.yaml"],
        "--leader-election": [""],
        "--lease-namespace": [NAMESPACE],
        "--lease-name": ["tidewheel"],
        "--concurrency": ["4"],
        "--resync-seconds": ["600"],
        "--health-address": ["$(POD_IP):8081"],
        "--metrics-address": ["$(POD_IP):8080"],
        "--log-format": ["json"],
        "--log-level": ["info"],
    }


@pytest.mark.parametrize("matrix", MATRIX)
def test_the_operator_understands_every_flag_and_its_accelerator_table(matrix, tmp_path):
    rendered = render(matrix=matrix)
    table = tmp_path / "accelerators.yaml"
    table.write_text(rows_of(rendered))
    words = [
        word.replace("/etc/tidewheel/accelerators.yaml", str(table)).replace("$(POD_IP)", "fd00::7")
        for word in rendered.operator["args"]
    ]

    given = cli.operator.make_context("operator", words).params

    assert Address.parse(given["health_address"]).port == rendered.operator["ports"][1]["containerPort"]
    assert accelerator_table(given["accelerators"])["nvidia"].resource == "nvidia.com/gpu"


def test_the_example_of_the_chart_is_a_valid_resource():
    annotations = yaml.safe_load((CHART / "Chart.yaml").read_text())["annotations"]

    for example in yaml.safe_load(annotations["artifacthub.io/crdsExamples"]):
        assert PDService.model_validate(example).spec.model.source.package is not None


def test_watched_namespaces_become_flags():
    assert arguments(render(matrix="namespaced"))["--namespace"] == ["team-a", "team-b"]


def test_a_single_operator_needs_no_election():
    given = arguments(render(matrix="single"))

    assert "--no-leader-election" in given
    assert not given.keys() & {"--leader-election", "--lease-name", "--lease-namespace"}


def test_ports_reach_flags_probes_service_and_policy():
    rendered = render(matrix="observed")

    given = arguments(rendered)
    assert given["--metrics-address"] == ["$(POD_IP):9090"]
    assert given["--health-address"] == ["$(POD_IP):9091"]
    assert [port["containerPort"] for port in rendered.operator["ports"]] == [9090, 9091]
    assert [port["port"] for port in rendered.one("Service")["spec"]["ports"]] == [9090, 9091]
    for probe, path in (
        ("startupProbe", "/healthz"),
        ("livenessProbe", "/healthz"),
        ("readinessProbe", "/readyz"),
    ):
        assert rendered.operator[probe]["httpGet"] == {"path": path, "port": "health"}
    assert ":9091/readyz" in rendered.one("Pod")["spec"]["containers"][0]["args"][0]


def test_images_are_named_by_tag_or_digest():
    rendered = render(matrix="customised")

    assert rendered.operator["image"] == "registry.example/tidewheel/operator@sha256:" + "a" * 64
    assert arguments(rendered)["--worker-image"] == ["registry.example/tidewheel/worker:0.1.0-cuda"]


def test_telemetry_is_off_without_an_endpoint_and_standard_with_one():
    assert not [name for name in environment(render()) if name.startswith("OTEL_")]

    given = environment(render(matrix="observed"))
    assert given["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://otel-collector.observability:4317"
    assert given["OTEL_TRACES_SAMPLER_ARG"] == "0.1"
    assert given["OTEL_RESOURCE_ATTRIBUTES"] == "cloud.region=eu-1,deployment.environment.name=production"
    assert "OTEL_EXPORTER_OTLP_HEADERS" in given


def test_added_accelerators_join_the_table_and_restart_the_operator():
    plain, more = render(), render(matrix="customised")

    assert [row["name"] for row in config(more)] == [*(row["name"] for row in config(plain)), "gaudi"]

    def checksum(rendered):
        return rendered.one("Deployment")["spec"]["template"]["metadata"]["annotations"]["checksum/config"]

    assert checksum(more) != checksum(plain)
    assert checksum(render({"replicaCount": 3})) == checksum(plain)


@pytest.mark.parametrize(("replicas", "budgets"), [(1, 0), (2, 1), (3, 1)])
def test_a_budget_never_blocks_the_drain_of_a_single_replica(replicas, budgets):
    assert len(render({"replicaCount": replicas}).all("PodDisruptionBudget")) == budgets


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("http://collector:4317", 4317),
        ("https://otlp.example", 443),
        ("http://collector.observability/otlp", 80),
    ],
)
def test_the_network_policy_lets_telemetry_out(endpoint, port):
    rendered = render({"networkPolicy": {"enabled": True}, "otel": {"endpoint": endpoint}})

    egress = rendered.one("NetworkPolicy")["spec"]["egress"]
    assert [rule["port"] for rule in egress[-1]["ports"]] == [port]


def test_the_network_policy_restricts_who_scrapes():
    ingress = render(matrix="observed").one("NetworkPolicy")["spec"]["ingress"]

    assert ingress[0]["from"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    ]


def test_labels_of_the_user_do_not_hide_those_of_the_chart():
    rendered = render({"commonLabels": {"app.kubernetes.io/name": "other", "team": "a"}})

    labels = rendered.one("Deployment")["metadata"]["labels"]
    assert (labels["app.kubernetes.io/name"], labels["team"]) == ("tidewheel", "a")


def test_two_releases_share_no_cluster_wide_name():
    def names(release):
        kinds = ("ClusterRole", "ClusterRoleBinding")
        return {each["metadata"]["name"] for kind in kinds for each in render(release=release).all(kind)}

    assert not names("first") & names("second")


def test_the_crds_are_those_of_the_repository_and_are_kept():
    source = {path.name: path.read_bytes() for path in (ROOT / "crds").glob("*.yaml")}
    copies = {path.name: path.read_bytes() for path in (CHART / "files" / "crds").glob("*.yaml")}
    assert copies == source

    rendered = {each["metadata"]["name"]: each for each in render().all("CustomResourceDefinition")}
    for content in source.values():
        crd = yaml.safe_load(content)
        installed = rendered.pop(crd["metadata"]["name"])
        assert installed["spec"] == crd["spec"]
        assert installed["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert rendered == {}


def test_the_crds_may_go_with_the_release_or_be_left_out():
    for crd in render({"crds": {"keep": False}}).all("CustomResourceDefinition"):
        assert "annotations" not in crd["metadata"]
    assert render({"crds": {"enabled": False}}).all("CustomResourceDefinition") == []


def test_the_test_pod_asks_the_service_and_is_a_hook():
    pod = render().one("Pod")

    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (container,) = pod["spec"]["containers"]
    assert container["command"] == ["python", "-c"]
    compile(container["args"][0], "test-connection", "exec")
    assert 'os.environ.get("TIDEWHEEL_SERVICE_HOST", "tidewheel.tidewheel-system")' in container["args"][0]


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        ("default", "watches all namespaces"),
        ("namespaced", "watches team-a, team-b"),
        ("namespaced", "kubectl apply --server-side -f crds/"),
        ("single", "No roles were created: the service account existing needs"),
    ],
)
def test_the_notes_say_what_was_installed(matrix, said):
    options = ("--dry-run=client", "--namespace", NAMESPACE, "--values", values_file(matrix))

    assert said in helm("install", "tidewheel", CHART, *options)


def test_an_old_cluster_is_refused():
    with pytest.raises(Refused, match=r"incompatible with Kubernetes v1\.28"):
        helm("template", "tidewheel", CHART, "--kube-version", "1.28.0")


@pytest.mark.parametrize(
    "changed",
    [
        {"hostNetwork": True},
        {"volumes": [{"name": "host", "hostPath": {"path": "/"}}]},
        {"securityContext": {}},
        {"containers": [{"name": "operator"}]},
    ],
)
def test_the_standards_check_notices(changed):
    spec = render().one("Deployment")["spec"]["template"]["spec"]

    assert restricted_violations({**spec, **changed}) != []
