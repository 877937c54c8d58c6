"""A sequence's rows are those of its blocks, and what leaves one pool arrives in another."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tidewheel_workers.llm.errors import KVMismatch
from tidewheel_workers.llm.kv import KVCache, KVLayout, KVSlot, as_tensor

LAYOUT = KVLayout(layers=2, kv_heads=3, head_dim=4, dtype=torch.float32, block_size=4)


def test_bytes_follow_from_the_layout() -> None:
    assert LAYOUT.bytes_for(10) == 2 * 2 * 10 * 3 * 4 * 4
    assert LAYOUT.blocks_for(9) == 3
    assert KVCache(LAYOUT, blocks=7).capacity_tokens == 28


def test_a_digest_tells_layouts_apart_but_not_block_sizes() -> None:
    assert LAYOUT.digest() == dataclasses.replace(LAYOUT, block_size=16).digest()
    others = [{"layers": 3}, {"kv_heads": 2}, {"head_dim": 8}, {"dtype": torch.bfloat16}]
    assert LAYOUT.digest() not in {dataclasses.replace(LAYOUT, **other).digest() for other in others}


@given(tables=st.lists(st.lists(st.integers(0, 11), unique=True, max_size=6), max_size=6))
def test_a_slot_has_the_rows_of_the_blocks_it_follows(tables: list[list[int]]) -> None:
    slot = KVCache(LAYOUT, blocks=12).new_slot()
    for blocks in tables:
        slot.follow(blocks)
        rows = [block * 4 + at for block in blocks for at in range(4)]
        assert slot.rows.tolist() == rows
        assert slot.rows.is_contiguous()
        assert (slot.blocks, slot.capacity) == (blocks, len(rows))
        is_run = bool(rows) and rows == list(range(rows[0], rows[0] + len(rows)))
        assert slot.first_row == (rows[0] if is_run else None)


def test_a_slot_does_not_change_with_the_list_it_followed() -> None:
    blocks = [1, 2]
    slot = KVCache(LAYOUT, blocks=12).new_slot()
    slot.follow(blocks)
    blocks[1] = 7
    assert slot.blocks == [1, 2]
    slot.follow(blocks)
    assert slot.rows.tolist() == [4, 5, 6, 7, 28, 29, 30, 31]


def test_freeing_twice_frees_once() -> None:
    kv = KVCache(LAYOUT, blocks=4)
    slot, other = kv.allocate(4), kv.allocate(4)
    kv.free(slot)
    kv.free(slot)
    assert kv.blocks.free == 3
    assert other.blocks != kv.allocate(4).blocks
    assert kv.allocate(100) is None


def scattered(kv: KVCache, tokens: int) -> KVSlot:
    """Room whose blocks are no run."""
    slot = kv.new_slot()
    slot.follow(list(range(kv.layout.blocks_for(tokens)))[::-1])
    return slot


SLOTS = {"run": KVCache.allocate, "scattered": scattered}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sender", SLOTS)
@pytest.mark.parametrize("receiver", SLOTS)
@given(tokens=st.integers(1, 14), cut=st.integers(0, 14))
def test_keys_and_values_cross_in_parts_into_another_pool(
    dtype: torch.dtype, sender: str, receiver: str, tokens: int, cut: int
) -> None:
    layout = dataclasses.replace(LAYOUT, dtype=dtype)
    here, there = KVCache(layout, blocks=4), KVCache(dataclasses.replace(layout, block_size=2), blocks=9)
    here.pool.normal_()
    source, target = SLOTS[sender](here, tokens), SLOTS[receiver](there, tokens)
    wire = bytearray(layout.bytes_for(tokens))
    contiguous = as_tensor(layout, tokens, wire)
    parts = [(0, min(cut, tokens)), (min(cut, tokens), tokens)]
    for start, end in parts:
        for layer in range(layout.layers):
            here.read_layer(source, layer, contiguous, start=start, tokens=end - start)
    for start, end in parts:
        there.place(target, contiguous, start=start, tokens=end - start)
    assert torch.equal(there.pool[:, :, target.rows[:tokens]], here.pool[:, :, source.rows[:tokens]])
    others = torch.ones(18, dtype=torch.bool)
    others[target.rows[:tokens]] = False
    assert not there.pool[:, :, others].any()


def test_a_copied_block_holds_the_same() -> None:
    kv = KVCache(LAYOUT, blocks=3)
    kv.pool.normal_()
    before = kv.pool.clone()
    kv.copy_block(2, 0)
    assert torch.equal(kv.pool[:, :, 0:4], before[:, :, 8:12])
    assert torch.equal(kv.pool[:, :, 4:], before[:, :, 4:])


def test_bytes_that_do_not_fit_the_length_are_refused() -> None:
    with pytest.raises(KVMismatch, match="383 bytes came for 4 tokens"):
        as_tensor(LAYOUT, 4, bytearray(383))
    with pytest.raises(KVMismatch, match="0 bytes came for 0 tokens"):
        as_tensor(LAYOUT, 0, bytearray())
