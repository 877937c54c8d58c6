"""The page and the command that people get a simulation from."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from tests.unit.simulation.test_planners import STEADY, Scripted
from tests.unit.simulation.world import run

from tidewheel.cli import main
from tidewheel.simulation.charts import Line, chart
from tidewheel.simulation.report import Arm, Report


@pytest.fixture(scope="module")
def report() -> Report:
    arms = (
        Arm(name="as told", run=run(STEADY, Scripted([(1, 1), (3, 1)]), start_seconds=5.0)),
        Arm(name="left <alone>", run=run(STEADY, ttft_seconds=1.0)),
    )
    return Report(
        title="A test", settings=(("device", "made up"),), ttft_seconds=1.0, tpot_seconds=0.05, arms=arms
    )


def test_the_page_needs_nothing_but_itself(report):
    page = report.html()
    assert not re.search(r"(src|href)=|url\(|@import", page)
    assert page.count("<svg") == 5


def test_the_page_tells_of_every_arm_and_of_what_its_planner_wanted(report):
    page = report.html()
    assert page.count("How requests ended") == 2
    assert "left &lt;alone&gt;" in page
    assert "<alone>" not in page
    assert "<td>3</td><td>1</td>" in page
    assert page.count("What the planner wanted") == 1


def test_figures_leave_out_what_is_no_number(report):
    for arm in report.figures().values():
        assert arm["requests"] == len(STEADY)
        assert "ttft mean s" in arm
    nothing = Arm(name="nobody", run=run([], ttft_seconds=1.0))
    empty = Report(title="", settings=(), ttft_seconds=1.0, tpot_seconds=1.0, arms=(nothing,))
    assert "ttft mean s" not in empty.figures()["nobody"]


def test_a_chart_is_well_formed_and_keeps_its_points_inside():
    lines = [
        Line(name=f"line {number} & more", points=((0.0, 1.0), (1.0, float("nan")), (2.0, 5.0), (3.0, 4.0)))
        for number in range(12)
    ]
    root = ElementTree.fromstring(chart("a < b", lines, across="x", up="y", least=0))
    paths = root.findall("{http://www.w3.org/2000/svg}path")
    assert len(paths) == 12
    _, _, width, height = map(float, root.get("viewBox").split())
    numbers = [tuple(map(float, pair)) for pair in re.findall(r"[ML]([\d.]+) ([\d.]+)", paths[0].get("d"))]
    assert len(numbers) == 3
    assert all(0 <= x <= width and 0 <= y <= height for x, y in numbers)


def test_a_stepped_line_holds_its_value():
    stepped = Line(name="count", points=((0.0, 1.0), (1.0, 3.0)), is_stepped=True)
    assert re.search(r'd="M[\d.]+ ([\d.]+)L[\d.]+ \1L', chart("c", [stepped], across="", up=""))


@pytest.fixture
def trace(tmp_path):
    file = tmp_path / "trace.csv"
    rows = [f"2023-11-16 18:{second // 60:02}:{second % 60:02}.000000,800,40" for second in range(300)]
    file.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    return file


def command(*arguments):
    return CliRunner().invoke(main, ["simulate", "pdservice", *map(str, arguments)])


def test_the_command_compares_planners_and_writes_what_was_asked_for(trace, tmp_path):
    page, plot = tmp_path / "page.html", tmp_path / "plot.svg"
    done = command(
        trace, "--planner", "tidewheel", "--planner", "keda", "--html", page, "--plot", plot, "--json"
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.output.splitlines()[-1])
    assert {name: arm["good"] for name, arm in told["figures"].items()} == {"tidewheel": 300, "keda": 300}
    assert page.read_text().startswith("<!doctype html>")
    assert plot.read_text().startswith("<svg")


def test_the_command_breaks_instances_at_their_time(trace):
    done = command(
        trace,
        "--planner",
        "static",
        "--fault",
        "prefill@100",
        "--decodes",
        2,
        "--fault",
        "decode@50",
        "--json",
    )
    told = json.loads(done.output.splitlines()[-1])["figures"]["static"]
    assert (told["substitutions"], told["good"]) == (2, 300)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        pytest.param(["--fault", "router@5"], "prefill@SECONDS", id="no such role"),
        pytest.param(["--fault", "decode@noon"], "decode@SECONDS", id="no time"),
        pytest.param(["--speed", "0"], "sped up", id="time stands still"),
    ],
)
def test_the_command_says_what_is_wrong(trace, more, says):
    done = command(trace, *more)
    assert done.exit_code == 1
    assert says in done.output


def test_the_command_says_which_line_is_no_request(tmp_path):
    file = tmp_path / "trace.jsonl"
    file.write_text('{"timestamp": 1}\n')
    assert "line 1 of the Mooncake trace" in command(file).output
