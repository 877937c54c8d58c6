"""What is written is sent once and received once, in whatever pieces it comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewheel_workers.serving.engine import KVShape
from tidewheel_workers.serving.kv_parts import BLOCK_TOKENS, Arrived, BadPart, Extent, Part, Plane, Written

SHAPE = KVShape(layers=3, kv_heads=2, head_dim=4, dtype="bfloat16")
VECTOR = 2 * 4 * 2


def part(layer: int = 0, start: int = 0, tokens: int = 1, layers: int = 1, plane: Plane = Plane.BOTH) -> Part:
    return Part(layer=layer, start=start, tokens=tokens, layers=layers, plane=plane)


@pytest.mark.parametrize(
    ("of", "want"),
    [
        pytest.param(part(tokens=10, layers=3), [(0, 60)], id="everything is one run"),
        pytest.param(part(1, tokens=10), [(20, 40)], id="a layer is one run"),
        pytest.param(part(1, 2, 3), [(22, 25), (32, 35)], id="keys and values of some tokens are two"),
        pytest.param(part(1, 2, 3, plane=Plane.VALUES), [(32, 35)], id="a plane of some tokens is one"),
        pytest.param(part(2, tokens=10, plane=Plane.KEYS), [(40, 50)], id="a whole plane"),
    ],
)
def test_where_a_part_lies(of, want):
    extent = Extent.of(SHAPE, 10)
    assert [(s.start // VECTOR, s.stop // VECTOR) for s in extent.slices(of)] == want
    assert sum(s.stop - s.start for s in extent.slices(of)) == extent.bytes_of(of)


def test_a_buffer_is_as_large_as_the_shape_says():
    assert Extent.of(SHAPE, 10).size == SHAPE.bytes_for(10)


@pytest.mark.parametrize(
    "of",
    [
        pytest.param(part(tokens=0), id="nothing"),
        pytest.param(part(tokens=11), id="more tokens than there are"),
        pytest.param(part(0, 8, 3), id="past the last token"),
        pytest.param(part(3), id="a layer too many"),
        pytest.param(part(2, tokens=10, layers=2), id="layers too many"),
        pytest.param(part(layers=0, tokens=10), id="no layer"),
        pytest.param(part(-1), id="a layer before the first"),
        pytest.param(part(0, -1), id="a token before the first"),
        pytest.param(part(0, 0, 9, layers=2), id="some tokens of two layers"),
        pytest.param(part(0, 0, 10, layers=2, plane=Plane.KEYS), id="the keys of two layers"),
    ],
)
def test_a_part_that_no_buffer_has_is_refused(of):
    with pytest.raises(BadPart):
        Extent.of(SHAPE, 10).slices(of)
    with pytest.raises(BadPart):
        Arrived(Extent.of(SHAPE, 10)).add(of)


def test_what_was_computed_before_goes_as_one_part():
    written = Written(Extent.of(SHAPE, 10))
    for layer in range(3):
        written.add(layer, 0, 10)
    assert written.is_whole
    assert written.take() == [part(tokens=10, layers=3)]
    assert written.take() == []


def test_layers_that_are_written_meanwhile_go_together():
    written = Written(Extent.of(SHAPE, 10))
    written.add(0, 0, 10)
    assert written.take() == [part(0, tokens=10)]
    written.add(1, 0, 10)
    written.add(2, 0, 10)
    assert written.take() == [part(1, tokens=10, layers=2)]


def test_a_prompt_that_is_computed_in_chunks_goes_in_chunks():
    written = Written(Extent.of(SHAPE, 10))
    for layer in range(3):
        written.add(layer, 0, 6)
    assert written.take() == [part(layer, 0, 6) for layer in range(3)]
    for layer in range(3):
        written.add(layer, 6, 4)
    assert written.take() == [part(layer, 6, 4) for layer in range(3)]


def test_what_a_preempted_prompt_writes_again_is_not_sent_again():
    written = Written(Extent.of(SHAPE, 10))
    written.add(0, 0, 6)
    written.take()
    written.add(0, 0, 4)
    written.add(0, 4, 4)
    assert written.take() == [part(0, 6, 2)]


@pytest.mark.parametrize(
    ("layer", "start", "tokens"),
    [(0, 1, 2), (3, 0, 1), (-1, 0, 1), (0, 0, 11), (0, -1, 1)],
    ids=["a gap", "no such layer", "a negative layer", "too many tokens", "a negative token"],
)
def test_an_engine_that_writes_elsewhere_is_told(layer, start, tokens):
    with pytest.raises(BadPart):
        Written(Extent.of(SHAPE, 10)).add(layer, start, tokens)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(part(0, 0, 5), part(0, 0, 5), id="twice"),
        pytest.param(part(0, 0, 5), part(0, 4, 2), id="overlapping"),
        pytest.param(part(0, 0, 5), part(0, 6, 2), id="with a gap"),
        pytest.param(part(0, 0, 5), part(0, tokens=10, layers=3), id="everything after a piece"),
        pytest.param(part(0, 0, 5, plane=Plane.KEYS), part(0, 0, 5), id="both planes after one"),
    ],
)
def test_a_part_that_does_not_follow_is_refused_and_changes_nothing(first, second):
    arrived = Arrived(Extent.of(SHAPE, 10))
    arrived.add(first)
    with pytest.raises(BadPart):
        arrived.add(second)
    arrived.add(part(0, 5, 5, plane=Plane.KEYS))


@given(tokens=st.integers(1, 70))
def test_blocks_are_everything_once(tokens):
    extent = Extent.of(SHAPE, tokens)
    blocks = list(extent.blocks(extent.whole))
    assert len(blocks) == 2 * SHAPE.layers * -(-tokens // BLOCK_TOKENS)
    arrived = Arrived(extent)
    bytes_ = sum(place.stop - place.start for block in blocks for place in arrived.add(block))
    assert (arrived.is_whole, bytes_) == (True, extent.size)


@given(story=st.data(), tokens=st.integers(1, 9))
def test_whatever_an_engine_writes_when_arrives_once(story, tokens):
    """Layers advance by random steps, the sender takes at random moments; the receiver gets the same bytes."""
    extent = Extent.of(SHAPE, tokens)
    written, arrived = Written(extent), Arrived(extent)
    source = bytes(place % 251 for place in range(extent.size))
    came = bytearray(extent.size)
    final = [0] * SHAPE.layers

    def deliver() -> None:
        for one in written.take():
            for there, here in zip(arrived.add(one), extent.slices(one), strict=True):
                came[there] = source[here]

    while min(final) < tokens:
        layer = story.draw(st.sampled_from([i for i, done in enumerate(final) if done < tokens]))
        steps = story.draw(st.integers(1, tokens - final[layer]))
        written.add(layer, final[layer], steps)
        final[layer] += steps
        if story.draw(st.booleans()):
            deliver()
    assert written.is_whole
    deliver()
    assert arrived.is_whole
    assert bytes(came) == source
