"""The parts under a pod's feet: volume directories, pod addresses, path substitution, the nodes file."""

from __future__ import annotations

import contextlib
import os
import threading
from ipaddress import IPv4Network
from pathlib import Path

import pytest
import yaml

from tidewheel.local.claims import NoServiceRange, service_range
from tidewheel.local.node.addresses import Addresses, AddressesExhausted
from tidewheel.local.node.environment import expand, mount_substitution
from tidewheel.local.node.paths import PodPaths
from tidewheel.local.node.volumes import File, write_atomically
from tidewheel.local.nodes import NodesFileError, load_nodes


def test_a_reader_sees_the_old_files_or_the_new_ones_never_a_mixture(tmp_path):
    generations = [{"a": File(b"%d" % n), "b": File(b"%d" % n)} for n in range(200)]
    write_atomically(tmp_path, generations[0])
    seen: list[tuple[bytes, bytes]] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            with contextlib.suppress(FileNotFoundError):  # this generation went away between two steps
                data = os.open(tmp_path / "..data", os.O_RDONLY | os.O_DIRECTORY)
                try:
                    found = [_read_at(data, name) for name in ("a", "b")]
                finally:
                    os.close(data)
                seen.append((found[0], found[1]))

    reader = threading.Thread(target=read)
    reader.start()
    for generation in generations[1:]:
        write_atomically(tmp_path, generation)
    done.set()
    reader.join()

    assert seen
    assert all(a == b for a, b in seen)
    assert (tmp_path / "a").read_bytes() == b"199"


def _read_at(directory: int, name: str) -> bytes:
    file = os.open(name, os.O_RDONLY, dir_fd=directory)
    try:
        return os.read(file, 10)
    finally:
        os.close(file)


def test_an_update_removes_what_is_gone_and_leaves_no_debris(tmp_path):
    write_atomically(tmp_path, {"old": File(b"1"), "deep/x": File(b"2", 0o600)})
    assert (tmp_path / "deep" / "x").stat().st_mode & 0o777 == 0o600

    assert write_atomically(tmp_path, {"new": File(b"3")}) is True
    assert write_atomically(tmp_path, {"new": File(b"3")}) is False

    visible = {path.name for path in tmp_path.iterdir() if not path.name.startswith("..")}
    assert visible == {"new"}
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("..")]) == 2


def test_two_agents_never_hold_the_same_address():
    network = IPv4Network("127.79.255.0/29")
    one, other = Addresses(network, start=0), Addresses(network, start=0)

    taken = [agent.take() for agent in (one, other, one, other)]

    assert len(set(taken)) == 4
    one.release(taken[0])
    assert other.take() not in taken[1:]


def test_exhausted_addresses_are_an_error_that_says_what_to_do():
    addresses = Addresses(IPv4Network("127.79.254.0/30"))
    for _ in range(3):
        addresses.take()

    with pytest.raises(AddressesExhausted, match="end some pods"):
        addresses.take()


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("$(A) and $(B)", "1 and $(B)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$A ${A} $(A", "$A ${A} $(A"),
    ],
)
def test_references_in_commands(text, want):
    assert expand(text, {"A": "1"}) == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("/etc/app", "/real/conf"),
        ("/etc/app/file", "/real/conf/file"),
        ("--config=/etc/app/file,/etc/app", "--config=/real/conf/file,/real/conf"),
        ("cat /etc/app; ls", "cat /real/conf; ls"),
        ("file:///etc/app", "file:///etc/app"),
        ("/etc/application", "/etc/application"),
        ("/etc/app.d", "/etc/app.d"),
        ("/my/etc/app", "/my/etc/app"),
        ("/etc/app/inner/x", "/real/inner/x"),
        ("/dev/termination-log", "/pod/termination/main"),
    ],
)
def test_mount_paths_are_replaced_where_they_stand_whole(text, want):
    container = {
        "name": "main",
        "volumeMounts": [
            {"name": "conf", "mountPath": "/etc/app/"},
            {"name": "inner", "mountPath": "/etc/app/inner"},
        ],
    }
    volumes = {"conf": Path("/real/conf"), "inner": Path("/real/inner")}

    replace = mount_substitution(container, volumes=volumes, paths=PodPaths(Path("/pod")), env={})

    assert replace(text) == want


def test_a_nodes_file_gives_labels_taints_and_accelerators(tmp_path):
    file = tmp_path / "nodes.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "nodes": [
                    {
                        "name": "npu-1",
                        "labels": {"accelerator": "huawei-Ascend910"},
                        "taints": [{"key": "npu", "effect": "NoSchedule"}],
                        "capacity": {"huawei.com/Ascend910": 8},
                    }
                ],
                "images": [{"prefix": "vllm/", "python": "/opt/vllm/bin/python"}],
            }
        )
    )

    found = load_nodes(file)

    assert found.nodes[0].resources()["huawei.com/Ascend910"] == "8"
    assert found.nodes[0].taints[0].to_manifest() == {"key": "npu", "effect": "NoSchedule"}
    assert found.image("vllm/vllm-openai:v1").python == Path("/opt/vllm/bin/python")
    assert found.image("busybox").entrypoint == ()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("nodes: []", "nodes"),
        ("nodes: [{name: A}]", "nodes.0.name"),
        ("nodes: [{name: a}, {name: a}]", "two nodes are named 'a'"),
        ("nodes: [{name: a, capacity: {cpu: many}}]", "cpu: 'many' is not a quantity"),
        ("nodes: [{name: a, colour: red}]", "nodes.0.colour"),
        ("nodes: [", "cannot be read as YAML"),
    ],
)
def test_a_wrong_nodes_file_is_refused_with_the_place(tmp_path, content, words):
    file = tmp_path / "nodes.yaml"
    file.write_text(content)

    with pytest.raises(NodesFileError, match=words) as refused:
        load_nodes(file)

    assert str(file) in str(refused.value)


def test_clusters_get_service_addresses_of_their_own_and_keep_them(tmp_path):
    file = tmp_path / "range"
    with service_range(file) as first, service_range() as second:
        assert not first.overlaps(second)

    with service_range(file) as again:
        assert again == first
        with pytest.raises(NoServiceRange, match=str(first)), service_range(file):
            pass
