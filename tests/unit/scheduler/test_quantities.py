"""How amounts are read and what a pod asks for in sum."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewheel.local.quantities import parse_quantity, pod_requests, whole


@pytest.mark.parametrize(
    ("resource", "text", "want"),
    [
        ("cpu", "500m", 500),
        ("cpu", "2", 2000),
        ("cpu", "0.1", 100),
        ("memory", "1Gi", 2**30),
        ("memory", "1G", 10**9),
        ("memory", "100m", 1),
        ("nvidia.com/gpu", 8, 8),
    ],
)
def test_amounts_are_whole_numbers_rounded_up(resource, text, want):
    assert whole(resource, text) == want


@pytest.mark.parametrize("text", ["", "much", "1 Gi", "Gi"])
def test_what_is_no_quantity_is_refused_by_name(text):
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_quantity(text)


def asks(cpu: str, **more: str) -> dict[str, object]:
    return {"name": "c", "resources": {"requests": {"cpu": cpu}}, **more}


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        pytest.param({"containers": [asks("1"), asks("500m")]}, 1500, id="containers add up"),
        pytest.param(
            {"containers": [asks("1")], "initContainers": [asks("3")]}, 3000, id="the hungriest init"
        ),
        pytest.param(
            {"containers": [asks("1")], "initContainers": [asks("500m", restartPolicy="Always"), asks("2")]},
            2500,
            id="a sidecar counts beside the inits after it",
        ),
        pytest.param(
            {"containers": [asks("1")], "initContainers": [asks("2"), asks("500m", restartPolicy="Always")]},
            2000,
            id="but not beside those before it",
        ),
        pytest.param({"containers": [asks("1")], "overhead": {"cpu": "250m"}}, 1250, id="overhead"),
        pytest.param(
            {"containers": [{"name": "c", "resources": {"limits": {"cpu": "2"}}}]},
            2000,
            id="a limit alone is a request",
        ),
    ],
)
def test_what_a_pod_asks_for(spec, want):
    assert pod_requests({"spec": spec})["cpu"] == want


@given(st.lists(st.integers(0, 10_000), max_size=5), st.lists(st.integers(0, 10_000), max_size=5))
def test_a_pod_never_asks_for_less_than_its_containers_or_any_init(containers, inits):
    spec = {
        "containers": [asks(f"{amount}m") for amount in containers],
        "initContainers": [asks(f"{amount}m") for amount in inits],
    }

    asked = pod_requests({"spec": spec}).get("cpu", 0)

    assert asked == max([sum(containers), *inits])
