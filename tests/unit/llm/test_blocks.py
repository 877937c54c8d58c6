"""Every block has as many holders as there are, and what has a name stays findable until its block is needed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewheel_workers.llm.blocks import DIGEST_BYTES, BlockPool, block_digest, prefix_digests


def names(tokens: list[int]) -> list[bytes]:
    return list(prefix_digests(tokens, 2))


def test_a_block_is_named_by_its_tokens_and_all_before_it() -> None:
    assert names([1, 2, 3, 4]) == names([1, 2, 3, 4, 5])
    assert names([1, 2, 3, 4])[1] != names([2, 1, 3, 4])[1]
    assert names([1, 2, 3, 4])[1] != names([3, 4])[0]
    assert block_digest(b"", [1, 2]) != block_digest(b"", [1 + (2 << 32), 0])
    assert {len(name) for name in names([1, 2, 3, 4])} == {DIGEST_BYTES}


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["take", "share", "give back", "name", "forget"]), st.integers(0, 30))
    )
)
def test_every_block_has_the_holders_it_should_have(steps: list[tuple[str, int]]) -> None:
    pool = BlockPool(8)
    held: list[list[int]] = []
    for action, number in steps:
        if action == "take":
            free = pool.free
            after = held[-1][-1] if held else None
            blocks = pool.take(1 + number % 4, after=after)
            assert (blocks is None) == (1 + number % 4 > free)
            held += [blocks] if blocks else []
        elif action == "share":
            found = pool.find([bytes([number % 6])])
            pool.share(found)
            held += [found] if found else []
        elif not held:
            continue
        elif action == "give back":
            pool.give_back(held.pop(number % len(held)))
        elif action == "name":
            pool.name(held[number % len(held)][0], bytes([number % 6]))
        else:
            pool.forget(held[number % len(held)])
        holders = Counter(block for blocks in held for block in blocks)
        assert [pool.holders(block) for block in range(8)] == [holders[block] for block in range(8)]
        assert pool.free == 8 - len(holders)
    for blocks in held:
        pool.give_back(blocks)
    assert pool.take(8) == list(range(8))


def test_blocks_of_one_holder_are_one_run_where_a_run_is_free() -> None:
    pool = BlockPool(10)
    first, second, third = pool.take(2), pool.take(3), pool.take(2)
    assert (first, second, third) == ([0, 1], [2, 3, 4], [5, 6])
    pool.give_back(second)
    assert pool.take(1, after=6) == [7]
    assert pool.take(3, after=1) == [2, 3, 4]
    pool.give_back(first)
    assert pool.take(3) == [0, 1, 8]


def test_more_than_is_free_is_not_taken_in_part() -> None:
    pool = BlockPool(3)
    pool.take(1)
    assert pool.take(3) is None
    assert pool.free == 2


def test_a_named_block_is_found_after_its_holder_is_gone() -> None:
    pool = BlockPool(3)
    (block,) = pool.take(1)
    pool.name(block, b"a")
    pool.give_back([block])
    assert pool.has(b"a")
    assert pool.free == 3
    assert pool.find([b"a", b"b"]) == [block]
    pool.share([block])
    assert (pool.free, pool.holders(block)) == (2, 1)


def test_a_beginning_is_found_only_without_gaps() -> None:
    pool = BlockPool(3)
    for block, name in zip(pool.take(3), (b"a", b"b", b"c"), strict=True):
        pool.name(block, name)
    assert pool.find([b"a", b"x", b"c"]) == [0]


def test_blank_blocks_are_given_first_then_the_least_recently_used_ends() -> None:
    pool = BlockPool(6)
    old, new = pool.take(2), pool.take(2)
    for block, name in zip(old + new, (b"a", b"b", b"c", b"d"), strict=True):
        pool.name(block, name)
    pool.give_back(old)
    pool.give_back(new)
    pool.share(pool.find([b"a"]))
    pool.give_back([0])  # used once more
    assert pool.take(3) == [1, 4, 5]
    assert [name for name in (b"a", b"b", b"c", b"d") if pool.has(name)] == [b"a", b"c", b"d"]
    assert pool.take(2) == [2, 3]
    assert pool.find([b"a"]) == [0]


def test_the_first_block_of_a_name_keeps_it() -> None:
    pool = BlockPool(2)
    first, second = pool.take(2)
    pool.name(first, b"a")
    pool.name(second, b"a")
    pool.give_back([first, second])
    assert pool.find([b"a"]) == [first]
    assert pool.take(1) == [second]


def test_a_block_keeps_its_first_name() -> None:
    pool = BlockPool(1)
    blocks = pool.take(1)
    pool.name(0, b"a")
    pool.name(0, b"b")
    assert (pool.has(b"a"), pool.has(b"b")) == (True, False)
    pool.forget(blocks)
    assert not pool.has(b"a")


def test_what_is_not_to_be_trusted_is_not_found() -> None:
    pool = BlockPool(1)
    blocks = pool.take(1)
    pool.name(0, b"a")
    pool.forget(blocks)
    assert not pool.has(b"a")
    pool.give_back(blocks)
    assert pool.take(1) == [0]


def test_a_block_that_nobody_holds_cannot_be_given_back() -> None:
    pool = BlockPool(1)
    with pytest.raises(RuntimeError, match="block 0"):
        pool.give_back([0])
    with pytest.raises(ValueError, match="at least one block"):
        BlockPool(0)
