"""The pool gives every block to one holder at a time, and what is exported arrives."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tidewheel_workers.llm.errors import KVMismatch, NoFreeBlocks
from tidewheel_workers.llm.kv import KVBlob, KVCache, KVLayout, KVSlot

LAYOUT = KVLayout(layers=2, kv_heads=3, head_dim=4, dtype=torch.float32, block_size=4)


def test_bytes_follow_from_the_layout() -> None:
    assert LAYOUT.bytes_for(10) == 2 * 2 * 10 * 3 * 4 * 4
    assert KVCache.of_bytes(LAYOUT, LAYOUT.bytes_for(4) * 7 + 1).blocks == 7


def test_a_digest_tells_layouts_apart_but_not_block_sizes() -> None:
    assert LAYOUT.digest() == dataclasses.replace(LAYOUT, block_size=16).digest()
    others = [{"layers": 3}, {"kv_heads": 2}, {"head_dim": 8}, {"dtype": torch.bfloat16}]
    assert LAYOUT.digest() not in {dataclasses.replace(LAYOUT, **other).digest() for other in others}


@given(steps=st.lists(st.tuples(st.sampled_from(["allocate", "free", "extend"]), st.integers(0, 30))))
def test_no_block_has_two_holders_and_none_is_lost(steps: list[tuple[str, int]]) -> None:
    kv = KVCache(LAYOUT, blocks=12)
    slots: list[KVSlot] = []
    for action, number in steps:
        if action == "allocate":
            free = kv.free_blocks
            slot = kv.allocate(number)
            assert (slot is None) == (LAYOUT.blocks_for(max(number, 1)) > free)
            slots += [slot] if slot else []
        elif slots and action == "free":
            kv.free(slots.pop(number % len(slots)))
        elif slots:
            slot = slots[number % len(slots)]
            before, rows = slot.capacity, slot.rows.tolist()
            if kv.extend(slot, number):
                assert slot.capacity >= number
            assert slot.rows.tolist()[:before] == rows
        held = [row for slot in slots for row in slot.rows.tolist()]
        assert len(held) == len(set(held)) == kv.used_blocks * LAYOUT.block_size
        assert all(
            slot.first_row is None
            or slot.rows.tolist() == list(range(slot.first_row, slot.first_row + slot.capacity))
            for slot in slots
        )


def test_freeing_twice_frees_once() -> None:
    kv = KVCache(LAYOUT, blocks=4)
    slot, other = kv.allocate(4), kv.allocate(4)
    kv.free(slot)
    kv.free(slot)
    assert kv.free_blocks == 3
    assert other.blocks != kv.allocate(4).blocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(tokens=st.integers(1, 14), reserve=st.integers(0, 16))
def test_a_blob_crosses_as_bytes_into_another_pool(dtype: torch.dtype, tokens: int, reserve: int) -> None:
    layout = dataclasses.replace(LAYOUT, dtype=dtype)
    here, there = KVCache(layout, blocks=4), KVCache(dataclasses.replace(layout, block_size=2), blocks=9)
    here.pool.normal_()
    blob = here.export(here.allocate(tokens), tokens)
    wire = bytearray(blob.as_bytes())
    assert len(wire) == layout.bytes_for(tokens)
    slot = there.adopt(KVBlob.from_bytes(there.layout, tokens, wire), reserve=reserve)
    assert slot.capacity >= max(tokens, reserve)
    assert torch.equal(there.export(slot, tokens).tensor, blob.tensor)


def test_bytes_that_do_not_fit_the_length_are_refused() -> None:
    with pytest.raises(KVMismatch, match="383 bytes came for 4 tokens"):
        KVBlob.from_bytes(LAYOUT, 4, bytearray(383))


def test_a_blob_of_another_layout_is_refused() -> None:
    other = dataclasses.replace(LAYOUT, layers=1)
    blob = KVBlob(layout=other, tensor=torch.zeros(other.shape(3)))
    with pytest.raises(KVMismatch, match="layers=1"):
        KVCache(LAYOUT, blocks=2).adopt(blob)


def test_a_blob_that_does_not_fit_now_leaves_the_pool_as_it_was() -> None:
    kv = KVCache(LAYOUT, blocks=2)
    with pytest.raises(NoFreeBlocks, match="3 KV blocks, 2 of 2 are free"):
        kv.adopt(KVBlob(layout=LAYOUT, tensor=torch.zeros(LAYOUT.shape(9))))
    assert kv.free_blocks == 2
