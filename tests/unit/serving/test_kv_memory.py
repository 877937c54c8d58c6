"""KV buffers are reserved once and used again, and nobody gets one that another still uses."""

from __future__ import annotations

import threading

import pytest
from tests.unit.serving.group import buffer_of, compute

from tidewheel_workers.serving.engine import Computed, First, KVShape
from tidewheel_workers.serving.kv_arena import KVArena, NoBuffer
from tidewheel_workers.serving.kv_buffer import GivenUp, KVBuffer

SHAPE = KVShape(layers=2, kv_heads=1, head_dim=8, dtype="float32")
DONE = Computed(request_id="r", first=(First(token=1),))


def arena(buffers: int = 3, tokens: int = 100) -> KVArena:
    return KVArena(SHAPE, buffers=buffers, tokens=tokens)


def test_a_lease_is_as_long_as_its_prompt_and_the_memory_is_used_again():
    made = arena(buffers=1)
    lease = made.lease(7)
    assert len(lease.memory) == SHAPE.bytes_for(7)
    lease.memory[:5] = b"first"
    lease.free()
    assert bytes(made.lease(3).memory[:5]) == b"first"


def test_leases_do_not_share_memory():
    made = arena(buffers=2)
    one, other = made.lease(10), made.lease(10)
    one.memory[:] = b"\x01" * len(one.memory)
    other.memory[:] = b"\x02" * len(other.memory)
    assert set(one.memory) == {1}


def test_when_all_are_leased_there_is_none_until_one_is_freed():
    made = arena(buffers=2)
    lease, _ = made.lease(1), made.lease(1)
    with pytest.raises(NoBuffer, match="all 2 KV buffers are in use"):
        made.lease(1)
    lease.free()
    lease.free()
    assert made.used == 1
    made.lease(1)
    with pytest.raises(NoBuffer):
        made.lease(1)


def test_a_prompt_longer_than_a_buffer_gets_none():
    with pytest.raises(NoBuffer, match="101 tokens of KV do not fit a buffer, which holds 100"):
        arena().lease(101)


def test_memory_is_taken_by_the_busiest_moment_and_not_by_the_number_of_buffers():
    made = arena(buffers=3)
    for tokens in (40, 5, 60, 10):
        made.lease(tokens).free()
    assert made.touched_bytes == SHAPE.bytes_for(60)
    long, short = made.lease(50), made.lease(10)
    assert made.touched_bytes == SHAPE.bytes_for(60) + SHAPE.bytes_for(10)
    long.free()
    short.free()
    again = made.lease(8)
    made.lease(60)
    assert made.touched_bytes == SHAPE.bytes_for(60) + SHAPE.bytes_for(10)
    again.free()


def test_more_than_there_is_room_for_is_refused_when_it_is_reserved():
    with pytest.raises(OSError, match="memory"):
        KVArena(SHAPE, buffers=1, tokens=1 << 50)


def test_a_buffer_is_free_when_the_last_holder_lets_go():
    freed = []
    buffer = KVBuffer(SHAPE, 1, memoryview(bytearray(128)), on_free=lambda: freed.append(1))
    buffer.hold()
    buffer.drop()
    assert freed == []
    buffer.drop()
    assert freed == [1]


def test_what_was_computed_is_there_at_once_and_once():
    buffer = buffer_of(5)
    buffer.finish(compute("hello", buffer))
    progress = buffer.progress(0)
    assert progress.parts == [buffer.extent.whole]
    assert isinstance(progress.end, Computed)
    assert buffer.progress(0).parts == []


def test_whoever_waits_is_woken_by_each_layer_and_by_the_end():
    buffer = buffer_of(5)
    seen = []

    def wait() -> None:
        while not seen or seen[-1].end is None:
            seen.append(buffer.progress(10))
            asked.release()

    asked = threading.Semaphore(0)
    thread = threading.Thread(target=wait)
    thread.start()
    for layer in range(2):
        buffer.wrote(layer, 0, 5)
        asked.acquire(timeout=10)
    buffer.finish(DONE)
    thread.join(10)
    assert sum(len(one.parts) for one in seen) == 2
    assert seen[-1].end is DONE


def test_the_first_word_on_how_it_ended_counts():
    buffer = buffer_of(5)
    gone = GivenUp(reason="withdrawn", message="")
    buffer.finish(gone)
    buffer.finish(DONE)
    assert buffer.end is gone


def test_a_prompt_is_not_computed_before_all_is_written():
    buffer = buffer_of(5)
    buffer.wrote(0, 0, 5)
    with pytest.raises(ValueError, match="without all of its keys and values"):
        buffer.finish(DONE)
