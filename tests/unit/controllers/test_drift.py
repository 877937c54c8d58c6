"""Which differences between what was applied and what stands there are ours to repair."""

from __future__ import annotations

import pytest

from tidewheel.api.meta import ANNOTATION_PUBLISHED
from tidewheel.controllers.drift import differences, digest_of


@pytest.mark.parametrize(
    ("wanted", "live", "want"),
    [
        pytest.param({"a": 1}, {"a": 1, "b": 2}, [], id="what others add is theirs"),
        pytest.param({"a": 1}, {"a": 2}, [".a"], id="a changed value"),
        pytest.param({"a": {"b": 1}}, {"a": {}}, [".a.b"], id="a removed value"),
        pytest.param(
            {"a": {}, "b": [], "c": None, "d": ""}, {}, [], id="the server leaves out what is empty"
        ),
        pytest.param({"a": ["x", "y"]}, {"a": ["x"]}, [".a"], id="a list of plain values is one value"),
        pytest.param(
            {"containers": [{"name": "w", "image": "1"}]},
            {"containers": [{"name": "sidecar", "image": "9"}, {"name": "w", "image": "1", "tty": False}]},
            [],
            id="an injected container stays",
        ),
        pytest.param(
            {"containers": [{"name": "w", "image": "1"}]},
            {"containers": [{"name": "w", "image": "2"}]},
            [".containers[name=w].image"],
            id="a changed image",
        ),
        pytest.param(
            {"ports": [{"port": 80, "targetPort": 8000}]},
            {"ports": [{"port": 81, "targetPort": 8000}]},
            [".ports[port=80]"],
            id="an item whose key was changed is missing",
        ),
        pytest.param(
            {"volumeMounts": [{"name": "v", "mountPath": "/a"}, {"name": "v", "mountPath": "/b"}]},
            {"volumeMounts": [{"name": "v", "mountPath": "/b"}, {"name": "v", "mountPath": "/a"}]},
            [],
            id="the order of keyed items is not ours",
        ),
        pytest.param(
            {"tolerations": [{"operator": "Exists"}]},
            {"tolerations": [{"key": "k", "operator": "Exists"}, {"operator": "Exists"}]},
            [],
            id="tolerations that admission adds stay",
        ),
        pytest.param(
            {"tolerations": [{"operator": "Exists"}]},
            {"tolerations": [{"key": "k", "operator": "Equal"}]},
            [".tolerations[0]"],
            id="a toleration that is gone",
        ),
        pytest.param(
            {"cpu": "0.5"}, {"cpu": "500m"}, [".cpu"], id="normalised values differ; the caller knows them"
        ),
    ],
)
def test_differences(wanted, live, want):
    assert list(differences(wanted, live)) == want


def test_the_digest_depends_on_the_content_and_not_on_its_order():
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    assert digest_of({"b": [1, 2]}) != digest_of({"b": [2, 1]})


def test_the_digest_does_not_depend_on_the_moment_of_publication():
    def published(at: str, **data: str) -> dict[str, object]:
        return {
            "metadata": {"name": "m", "annotations": {ANNOTATION_PUBLISHED: at, "a": "b"}},
            "data": data,
        }

    assert digest_of(published("09:00", k="1")) == digest_of(published("09:01", k="1"))
    assert digest_of(published("09:00", k="1")) != digest_of(published("09:00", k="2"))
