"""The real helm against the local API server, with a chart of a few lines."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from tests.local.apiserver.conftest import GADGET_CRD

from tidewheel.local.tools import find_tool

pytestmark = pytest.mark.slow

TEMPLATE = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}}
data: {size: "{{ .Values.size }}"}
---
apiVersion: test.example.com/v1
kind: Gadget
metadata: {name: {{ .Release.Name }}}
spec: {size: {{ .Values.size }}}
---
apiVersion: v1
kind: Service
metadata: {name: {{ .Release.Name }}}
spec: {selector: {app: x}, ports: [{port: 80}]}
"""


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    root = tmp_path / "chart"
    (root / "templates").mkdir(parents=True)
    (root / "crds").mkdir()
    (root / "Chart.yaml").write_text("apiVersion: v2\nname: tiny\nversion: 0.1.0\n")
    (root / "values.yaml").write_text("size: 1\n")
    (root / "templates" / "all.yaml").write_text(TEMPLATE)
    (root / "crds" / "gadgets.yaml").write_text(json.dumps(GADGET_CRD))
    return root


def test_a_release_lives_from_install_to_uninstall(chart: Path, kubeconfig: Path, tmp_path: Path):
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "HOME": str(tmp_path)}

    def run(tool: str, *arguments: str) -> str:
        command = [str(find_tool(tool)), *arguments]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def size() -> tuple[str, str]:
        return (
            run("kubectl", "get", "cm", "rel", "-o", "jsonpath={.data.size}"),
            run("kubectl", "get", "gadgets", "rel", "-o", "jsonpath={.spec.size}"),
        )

    run("helm", "install", "rel", str(chart), "--wait", "--timeout=60s")
    assert size() == ("1", "1")
    run("helm", "upgrade", "rel", str(chart), "--set=size=2")
    assert size() == ("2", "2")
    run("helm", "rollback", "rel", "1")
    assert size() == ("1", "1")
    history = json.loads(run("helm", "history", "rel", "-o", "json"))
    assert [one["status"] for one in history] == ["superseded", "superseded", "deployed"]
    run("helm", "uninstall", "rel", "--wait")
    assert json.loads(run("helm", "list", "-o", "json")) == []
    assert run("kubectl", "get", "cm,svc,gadgets,secrets", "-o", "name") == ""
