"""Whatever a model's files hold, loading gives a model or says why not: no other error, no hang, and memory in proportion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.llm.file_bytes import (
    ARRAY,
    CONFIG,
    GGUF_KEYS,
    GGUF_PLACES,
    SAFETENSORS_CLAIMS,
    SCALARS,
    STRING,
    TOKENIZER,
    TOKENIZER_CONFIG,
    Place,
    Value,
    gguf_bytes,
    number,
    safetensors_bytes,
)

from tidewheel_workers.llm.errors import ModelError
from tidewheel_workers.llm.loading import load_model

#: An array of numbers takes up to 36 bytes of Python for one of the file; a string's characters take up to four.
MOST_BYTES_PER_FILE_BYTE = 64
MOST_BYTES_BESIDE = 4 << 20

EDGES = (
    0,
    1,
    2,
    31,
    255,
    256,
    1 << 15,
    (1 << 16) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 62,
    (1 << 63) - 1,
    1 << 63,
)
EDGES_64 = (*EDGES, (1 << 64) - 1)
LOOSE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def load(path: Path) -> str:
    """Load a model; "" when that went well, else what was wrong."""
    try:
        load_model(f"path:{path}")
    except ModelError as error:
        return str(error) or "(nothing)"
    return ""


def load_gguf(directory: Path, raw: bytes) -> str:
    path = directory / "tiny.gguf"
    path.write_bytes(raw)
    return load(path)


def load_directory(directory: Path, **files: bytes | object) -> str:
    """Load the tiny model's directory with some of its files replaced; what is no bytes is written as JSON."""
    content: dict[str, bytes | object] = {
        "config.json": CONFIG,
        "tokenizer.json": TOKENIZER,
        "tokenizer_config.json": TOKENIZER_CONFIG,
        "generation_config.json": {},
        "model.safetensors.index.json": {},
        "model.safetensors": safetensors_bytes(SAFETENSORS_CLAIMS),
    } | files
    for name, value in content.items():
        raw = value if isinstance(value, bytes) else json.dumps(value).encode(errors="surrogatepass")
        (directory / name).write_bytes(raw)
    return load(directory)


def test_the_tiny_models_load_as_they_are(tmp_path):
    assert load_gguf(tmp_path, gguf_bytes()) == ""
    (tmp_path / "tiny.gguf").unlink()
    assert load_directory(tmp_path) == ""


# ---- GGUF


def values() -> st.SearchStrategy[Value]:
    """Every type of GGUF's metadata with every kind of content, true and false claims of length."""

    def content(kind: int) -> st.SearchStrategy[Any]:
        if kind == STRING:
            return st.binary(max_size=12) | st.sampled_from([b"llama", b"gpt2", b"\xff\xfe", b"{% for"])
        code = SCALARS[kind]
        if code in "fd":
            return st.floats(width=32 if code == "f" else 64)
        if code == "?":
            return st.booleans()
        bits = {"b": 8, "h": 16, "i": 32, "q": 64}.get(code.lower(), 8)
        low, high = (0, (1 << bits) - 1) if code.isupper() else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
        return st.integers(low, high) | st.sampled_from([edge for edge in EDGES_64 if low <= edge <= high])

    plain = st.sampled_from([*SCALARS, STRING]).flatmap(
        lambda kind: st.builds(
            Value,
            kind=st.just(kind),
            value=content(kind),
            claimed=st.none() | st.sampled_from(EDGES_64) if kind == STRING else st.none(),
        )
    )
    arrays = st.sampled_from([*SCALARS, STRING]).flatmap(
        lambda kind: st.builds(
            Value,
            kind=st.just(ARRAY),
            item_kind=st.just(kind),
            value=st.lists(content(kind), max_size=8).map(tuple),
            claimed=st.none() | st.none() | st.sampled_from(EDGES_64),
        )
    )
    return plain | arrays


def places() -> st.SearchStrategy[Place]:
    """Dimensions, types and offsets that need not fit anything; now and then they overlap other tensors."""
    size = st.sampled_from([1, 2, 4, 6, 8, 32, 256]) | st.sampled_from(EDGES_64) | st.integers(0, 64)
    return st.builds(
        Place,
        dimensions=st.lists(size, max_size=5).map(tuple),
        kind=st.integers(0, 45) | st.sampled_from(EDGES[:10]),
        offset=st.sampled_from([place.offset for place in GGUF_PLACES.values()]) | st.sampled_from(EDGES_64),
    )


@given(
    keys=st.dictionaries(st.sampled_from(sorted(GGUF_KEYS)), values() | st.none(), max_size=3),
    others=st.dictionaries(st.binary(max_size=9), values(), max_size=2),
)
@LOOSE
def test_any_metadata_of_a_gguf_is_read_or_refused(tmp_path, keys, others):
    load_gguf(tmp_path, gguf_bytes(keys={**others, **keys}))


@given(
    claims=st.dictionaries(st.sampled_from(sorted(GGUF_PLACES)), places() | st.none(), min_size=1, max_size=3)
)
@LOOSE
def test_any_tensor_claims_of_a_gguf_are_read_or_refused(tmp_path, claims):
    load_gguf(tmp_path, gguf_bytes(places=claims))


@pytest.mark.parametrize("kind", range(24, 29))
def test_a_gguf_whose_weights_are_whole_numbers_is_refused(tmp_path, kind):
    claim = replace(GGUF_PLACES[b"output_norm.weight"], kind=kind)
    assert "which is not read here" in load_gguf(tmp_path, gguf_bytes(places={b"output_norm.weight": claim}))


@given(
    edits=st.lists(
        st.tuples(
            st.integers(0, 4096),
            st.sampled_from([edge.to_bytes(8, "little") for edge in EDGES_64])
            | st.binary(min_size=1, max_size=9),
        ),
        max_size=6,
    ),
    kept=st.just(1.0) | st.floats(0, 1),
)
@LOOSE
def test_a_damaged_gguf_is_read_or_refused(tmp_path, edits, kept):
    raw = bytearray(gguf_bytes())
    for at, new in edits:
        at %= len(raw)
        raw[at : at + len(new)] = new
    load_gguf(tmp_path, bytes(raw[: int(kept * len(raw))]))


@given(rest=st.binary(max_size=200), version=st.integers(2, 3))
@LOOSE
def test_any_bytes_behind_a_ggufs_beginning_are_refused(tmp_path, rest, version):
    assert load_gguf(tmp_path, b"GGUF" + version.to_bytes(4, "little") + rest)


@given(
    value=values(),
    claimed=st.tuples(st.none() | st.sampled_from(EDGES_64), st.none() | st.sampled_from(EDGES_64)),
)
@LOOSE
def test_a_gguf_header_takes_memory_in_proportion_to_the_file(tmp_path, value, claimed):
    raw = gguf_bytes(keys={b"more": value}, claimed_keys=claimed[0], claimed_tensors=claimed[1])
    tracemalloc.start()
    try:
        load_gguf(tmp_path, raw)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MOST_BYTES_PER_FILE_BYTE * len(raw) + MOST_BYTES_BESIDE


# ---- safetensors and what lies beside them

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 1.5, *EDGES_64, 1 << 70])
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["llama3", "F32", "LlamaForCausalLM", "default", "8"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
claims = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "X"])
        | json_values,
        "shape": st.lists(st.sampled_from([0, 1, 4, 6, 8, *EDGES_64, 1 << 70]), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(0, 2048) | st.sampled_from(EDGES_64), max_size=3) | json_values,
    }
)


@given(
    tensors=st.dictionaries(
        st.sampled_from(sorted(SAFETENSORS_CLAIMS)), claims | json_values, min_size=1, max_size=3
    )
)
@LOOSE
def test_any_tensor_claims_of_safetensors_are_read_or_refused(tmp_path, tensors):
    load_directory(tmp_path, **{"model.safetensors": safetensors_bytes(SAFETENSORS_CLAIMS | tensors)})


def test_safetensors_whose_weights_are_whole_numbers_are_refused(tmp_path):
    claims_of_int = {name: claim | {"dtype": "I32"} for name, claim in SAFETENSORS_CLAIMS.items()}
    told = load_directory(tmp_path, **{"model.safetensors": safetensors_bytes(claims_of_int)})
    assert "holds I32; weights of BF16, F16, F32, F64 are read" in told


@given(
    header=st.binary(max_size=60) | json_values.map(json.dumps).map(str.encode),
    claimed=st.none() | st.sampled_from(EDGES_64),
)
@LOOSE
def test_any_header_of_safetensors_is_refused(tmp_path, header, claimed):
    assert load_directory(tmp_path, **{"model.safetensors": safetensors_bytes(header, claimed=claimed)})


@given(
    changes=st.dictionaries(
        st.sampled_from([*CONFIG, "rope_scaling", "rope_parameters", "sliding_window", "attention_bias"]),
        json_values,
        min_size=1,
        max_size=3,
    )
)
@LOOSE
def test_any_configuration_is_taken_or_refused(tmp_path, changes):
    load_directory(tmp_path, **{"config.json": CONFIG | changes})


ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@given(
    changes=st.dictionaries(
        st.sampled_from([*ROPE, "original_max_position_embeddings"]), json_values, max_size=3
    )
)
@LOOSE
def test_any_stretching_of_rotations_is_taken_or_refused(tmp_path, changes):
    rope = ROPE | {"original_max_position_embeddings": 32} | changes
    load_directory(tmp_path, **{"config.json": CONFIG | {"rope_scaling": rope}})


@given(
    name=st.sampled_from(
        [
            "config.json",
            "generation_config.json",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
    ),
    value=json_values | st.binary(max_size=40),
)
@LOOSE
def test_any_file_beside_the_weights_is_read_or_refused(tmp_path, name, value):
    load_directory(tmp_path, **{name: value})


@given(
    index=st.fixed_dictionaries({"weight_map": json_values}),
    generation=st.fixed_dictionaries({"eos_token_id": json_values}),
    tokenizer=st.fixed_dictionaries(
        {}, optional=dict.fromkeys(["chat_template", "bos_token", "eos_token"], json_values)
    ),
)
@LOOSE
def test_any_values_in_the_files_beside_the_weights_are_taken_or_refused(
    tmp_path, index, generation, tokenizer
):
    load_directory(tmp_path, **{"model.safetensors.index.json": index})
    load_directory(tmp_path, **{"generation_config.json": generation})
    load_directory(tmp_path, **{"tokenizer_config.json": tokenizer})


# ---- large claims, with a limit on the process's memory

LIMIT_BYTES = 512 << 20
LOADS_WITHIN_A_LIMIT = """
import re, resource, sys, torch
from tidewheel_workers.llm.errors import ModelError
from tidewheel_workers.llm.loading import load_model
now = 1024 * int(re.search(r"VmData:\\s+(\\d+)", open("/proc/self/status").read())[1])
resource.setrlimit(resource.RLIMIT_DATA, (now + int(sys.argv[1]),) * 2)
for path in sys.argv[2:]:
    try:
        load_model(f"path:{path}")
    except ModelError as error:
        print(path, type(error).__name__, error)
"""


def grown(path: Path, raw: bytes, size: int) -> Path:
    """The bytes, and then nothing up to that size: such a file takes no room."""
    path.write_bytes(raw)
    os.truncate(path, size)
    return path


def directory_of(path: Path, **files: bytes | object) -> Path:
    path.mkdir()
    load_directory(path, **files)
    return path


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits a process as Linux does")
def test_claims_beyond_all_memory_are_refused_within_little_of_it(tmp_path):
    giant = 6 << 30
    most = (1 << 31) - 1
    huge = {b"llama.vocab_size": number(most), b"llama.embedding_length": number(most - 1)}
    sparse = [
        grown(tmp_path / "array.gguf", gguf_bytes(keys={b"a": Value(kind=ARRAY, item_kind=0, value=(), claimed=4 << 30)}), giant),
        grown(tmp_path / "texts.gguf", gguf_bytes(keys={b"a": Value(kind=ARRAY, item_kind=STRING, value=(), claimed=1 << 28)}), giant),
        grown(tmp_path / "text.gguf", gguf_bytes(keys={b"a": Value(kind=STRING, value=b"", claimed=4 << 30)}), giant),
        grown(tmp_path / "counts.gguf", gguf_bytes(claimed_keys=1 << 16, claimed_tensors=1 << 18), giant),
        grown(tmp_path / "model.gguf", gguf_bytes(keys=huge), giant),
        grown(tmp_path / "wraps.gguf", gguf_bytes(places={b"output_norm.weight": Place(dimensions=(1 << 32, 1 << 32), kind=0, offset=0)}), giant),
        grown(tmp_path / "kind.gguf", gguf_bytes(places={b"token_embd.weight": Place(dimensions=(1 << 30,), kind=24, offset=0)}), giant),
    ]  # fmt: skip
    header = tmp_path / "header"
    directories = [
        directory_of(
            tmp_path / "config", **{"config.json": CONFIG | {"vocab_size": most, "hidden_size": most - 1}}
        ),
        directory_of(tmp_path / "nested", **{"config.json": b'{"a":' * 200_000}),
        directory_of(tmp_path / "claim", **{"model.safetensors": safetensors_bytes(b"{}", claimed=1 << 62)}),
        directory_of(header),
        directory_of(tmp_path / "json"),
    ]
    grown(header / "model.safetensors", safetensors_bytes(b"{}", claimed=4 << 30), giant)
    grown(tmp_path / "json" / "config.json", b"{", giant)
    done = subprocess.run(
        [sys.executable, "-c", LOADS_WITHIN_A_LIMIT, str(LIMIT_BYTES), *map(str, [*sparse, *directories])],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    refused = {line.partition(" ")[0] for line in done.stdout.splitlines()}
    assert refused == {str(path) for path in [*sparse, *directories]}
