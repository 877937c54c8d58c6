"""The Dockerfile, read as text: no container engine is needed, and none has checked it here."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
from tests.chart.rendering import ROOT

TARGETS = ("operator", "worker")


@dataclass
class Stage:
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        return [text for instruction, text in self.instructions if instruction == name]


def stages() -> dict[str, Stage]:
    """The stages by name, continuation lines and here-documents joined to their instruction."""
    found: dict[str, Stage] = {}
    lines = iter((ROOT / "Dockerfile").read_text().splitlines())
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        while line.endswith("\\"):
            line = line[:-1] + next(lines)
        name, _, text = line.partition(" ")
        if heredoc := re.search(r"<<'(\w+)'", text):
            body = list(iter(lambda: next(lines), heredoc[1]))
            text = "\n".join([text, *body])
        if name == "FROM":
            base, _, alias = text.partition(" AS ")
            found[alias] = Stage(base)
        elif found:
            found[alias].instructions.append((name, text))
    return found


def chain(target: str) -> list[Stage]:
    """The stage and those it is built on, nearest first."""
    known = stages()
    found = [known[target]]
    while found[-1].base in known:
        found.append(known[found[-1].base])
    return found


def copied_from_context(stage: Stage) -> list[str]:
    return [source for text in stage.all("COPY") if "--from" not in text for source in shlex.split(text)[:-1]]


@pytest.mark.parametrize("target", TARGETS)
def test_images_run_as_the_user_the_pods_ask_for(target):
    assert stages()[target].all("USER") == ["65532:65532"]
    assert "--uid 65532" in " ".join(chain(target)[1].all("RUN"))


def test_the_operator_has_no_torch():
    build = chain("operator-build")
    for stage in (*chain("operator"), *build[:1]):
        for _, text in stage.instructions:
            assert "torch" not in text
            assert "workers.txt" not in text


def test_everything_copied_is_there_and_passes_the_ignore_file():
    let_through = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    sources = [source for stage in stages().values() for source in copied_from_context(stage)]

    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source in let_through, source


def test_every_stage_that_is_copied_from_exists():
    known = stages()
    for stage in known.values():
        for text in stage.all("COPY"):
            if copied := re.match(r"--from=(\S+)", text):
                assert copied[1] in known


def test_every_installation_is_pinned():
    commands = [text for stage in stages().values() for text in stage.all("RUN") if "pip --python" in text]

    assert len(commands) == 6
    for command in commands:
        assert re.search(r"-c requirements(-data)?\.lock|--no-deps \.$", command), command


def test_the_lists_of_dependencies_are_those_of_the_extras(tmp_path):
    (command,) = (text for text in stages()["build"].all("RUN") if "<<" in text)
    script = command.partition("\n")[2].replace("/tmp/", f"{tmp_path}/")

    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)

    operator, workers = ((tmp_path / f"{extra}.txt").read_text() for extra in ("operator", "workers"))
    assert "kopf" in operator
    assert "torch" not in operator
    assert "torch" in workers
    assert "kopf" not in workers
    assert "opentelemetry-sdk" in operator
    assert "opentelemetry-sdk" in workers


def test_the_operator_image_starts_the_operator():
    operator = stages()["operator"]

    assert operator.all("ENTRYPOINT") == ['["tidewheel"]']
    assert operator.all("CMD") == ['["operator"]']


@pytest.mark.parametrize("target", TARGETS)
def test_images_say_where_they_come_from(target):
    (label,) = stages()[target].all("LABEL")
    for name in ("title", "source", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{name}=" in label
