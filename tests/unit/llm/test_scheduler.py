"""Who is computed when, with how much, and who gives way: the scheduler alone, no model."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import pytest

from tidewheel_workers.llm.blocks import BlockPool
from tidewheel_workers.llm.scheduler import CopyBlock, PlaceReceived, Plan, Scheduler
from tidewheel_workers.llm.sequence import Sequence

BLOCK = 4


def scheduler(*, blocks: int = 32, max_running: int = 8, batch_tokens: int = 16) -> Scheduler:
    return Scheduler(BlockPool(blocks), block_size=BLOCK, max_running=max_running, batch_tokens=batch_tokens)


def sequence(tokens: Iterable[int] | int, **more: object) -> Sequence:
    """A prompt; of a number of tokens that nobody else has, if only the number is given."""
    if isinstance(tokens, int):
        sequence.made += 1000
        tokens = range(sequence.made, sequence.made + tokens)
    return Sequence(tokens=array("q", tokens), **more)


sequence.made = 0


def run(scheduler: Scheduler, *, write: bool = True) -> dict[Sequence, int]:
    """One pass: who was computed by how many tokens. Whoever has all its logits writes a token."""
    plan = scheduler.plan()
    for chunk in plan.chunks:
        scheduler.advance(chunk)
        if chunk.sequence.missing == 0 and write:
            chunk.sequence.tokens.append(7)
    return sizes(plan)


def sizes(plan: Plan) -> dict[Sequence, int]:
    return {chunk.sequence: chunk.tokens for chunk in plan.chunks}


def added(scheduler: Scheduler, *sequences: Sequence) -> tuple[Sequence, ...]:
    for one in sequences:
        scheduler.add(one)
    return sequences


def test_short_prompts_share_a_pass_and_a_long_one_is_cut() -> None:
    batch = scheduler()
    a, b, c = added(batch, sequence(5), sequence(6), sequence(20))
    assert run(batch) == {a: 5, b: 6, c: 5}
    assert run(batch) == {a: 1, b: 1, c: 14}
    assert run(batch) == {a: 1, b: 1, c: 1}


def test_answers_go_first_and_prompts_share_what_is_left() -> None:
    batch = scheduler(batch_tokens=4)
    writers = added(batch, *(sequence(1) for _ in range(3)))
    run(batch)
    late, later = added(batch, sequence(6), sequence(2))
    assert run(batch) == dict.fromkeys(writers, 1) | {late: 4}  # at least a block, whatever is left
    assert run(batch) == dict.fromkeys(writers, 1) | {late: 2, later: 2}


def test_nobody_overtakes_a_prompt_that_waits_for_blocks() -> None:
    batch = scheduler(blocks=8)
    first, big, small = added(batch, sequence(16), sequence(20), sequence(2))
    assert run(batch) == {first: 16}
    assert run(batch) == {first: 1}
    batch.remove(first)
    assert set(run(batch)) == {big}
    assert list(batch.waiting) == [small]


def test_no_more_run_than_may() -> None:
    batch = scheduler(max_running=2)
    a, b, c = added(batch, *(sequence(2) for _ in range(3)))
    assert set(run(batch)) == {a, b}
    batch.remove(a)
    assert set(run(batch)) == {b, c}


def test_an_answer_takes_a_block_when_it_fills_the_last() -> None:
    batch = scheduler()
    (one,) = added(batch, sequence(3))
    held = []
    for _ in range(6):
        run(batch)
        held.append(len(one.blocks))
    assert held == [1, 1, 2, 2, 2, 2]


def test_the_newest_gives_way_and_is_next_afterwards() -> None:
    batch = scheduler(blocks=4)
    old, new, waits = added(batch, sequence(7), sequence(3), sequence(1))
    assert run(batch) == {old: 7, new: 3}
    assert run(batch) == {old: 1, new: 1}
    assert run(batch) == {old: 1}  # both want another block, and there is one
    assert batch.preemptions == 1
    assert list(batch.waiting) == [new, waits]
    assert (new.blocks, new.computed, new.runs) == ([], 0, False)
    assert run(batch) == {old: 1}
    batch.remove(old)
    assert run(batch) == {new: 5 - 4, waits: 1}  # its first block is still known


def test_the_oldest_takes_from_the_newest_even_what_that_would_compute_next() -> None:
    batch = scheduler(blocks=5, batch_tokens=8)
    old, middle, new = added(batch, sequence(2), sequence(2), sequence(4))
    assert run(batch) == {old: 2, middle: 2, new: 4}
    for _ in range(3):
        run(batch)
    assert [one.runs for one in (old, middle, new)] == [True, True, False]
    assert [len(one.blocks) for one in (old, middle)] == [2, 2]


def test_the_only_sequence_never_gives_way() -> None:
    batch = scheduler(blocks=3)
    (one,) = added(batch, sequence(4))
    assert [run(batch)[one] for _ in range(9)] == [4, *[1] * 8]
    assert (batch.preemptions, batch.pool.free) == (0, 0)
    with pytest.raises(RuntimeError, match="the only sequence"):
        run(batch)


def test_nobody_begins_on_blocks_that_the_writing_ones_need_at_once() -> None:
    batch = scheduler(blocks=4)
    old, new = added(batch, sequence(8), sequence(8))
    assert run(batch) == {old: 8}
    assert list(batch.waiting) == [new]


def test_who_only_wants_a_prompt_computed_needs_no_block_beyond_it() -> None:
    batch = scheduler(blocks=4)
    both = added(batch, sequence(8, will_write=False), sequence(8, will_write=False))
    assert run(batch, write=False) == dict.fromkeys(both, 8)


def test_a_prompt_begins_with_the_blocks_of_an_earlier_one() -> None:
    batch = scheduler()
    (first,) = added(batch, sequence([1, 2, 3, 4, 5, 6, 7, 8, 9]))
    run(batch)
    (second,) = added(batch, sequence([1, 2, 3, 4, 5, 6, 7, 8, 20, 21]))
    assert run(batch)[second] == 2
    assert second.blocks[:2] == first.blocks[:2]
    assert (second.cached, batch.prefix_hits, batch.prefix_queries) == (8, 8, 19)


def test_at_least_one_token_of_a_prompt_is_computed() -> None:
    batch = scheduler()
    added(batch, sequence([1, 2, 3, 4, 5, 6, 7, 8]))
    run(batch)
    (again,) = added(batch, sequence([1, 2, 3, 4, 5, 6, 7, 8]))
    assert run(batch)[again] == 4
    assert again.cached == 4


def test_an_answer_can_be_the_beginning_of_the_next_prompt() -> None:
    batch = scheduler()
    (first,) = added(batch, sequence([1, 2, 3]))
    for _ in range(6):
        run(batch)
    batch.remove(first)
    (second,) = added(batch, sequence([1, 2, 3, 7, 7, 7, 7, 7, 9]))
    assert run(batch)[second] == 1


def test_what_was_given_back_is_mostly_still_there() -> None:
    batch = scheduler(blocks=6)
    old, new = added(batch, sequence(11), sequence(8))
    while batch.preemptions == 0:
        run(batch)
    batch.remove(old)
    assert run(batch)[new] < len(new.tokens) - 1
    assert (batch.prefix_queries, batch.prefix_hits) == (19, 0)  # not counted again


def test_received_blocks_are_filled_before_the_pass_and_found_by_others() -> None:
    batch = scheduler()
    first, second = added(
        batch, sequence([1, 2, 3, 4, 5, 6, 70], received=6), sequence([1, 2, 3, 4, 5, 6, 71], received=6)
    )
    plan = batch.plan()
    assert [(one.sequence, one.start, one.tokens) for one in plan.before] == [(first, 0, 6), (second, 4, 2)]
    assert all(isinstance(one, PlaceReceived) for one in plan.before)
    assert sizes(plan) == {first: 1, second: 1}
    assert first.blocks[0] == second.blocks[0]
    assert batch.prefix_queries == 0


def test_what_came_is_placed_at_once_where_nobody_waits() -> None:
    batch = scheduler(max_running=2)
    first = sequence([1, 2, 3, 4, 5, 6], received=5, siblings=[sequence([1, 2, 3, 4, 5, 7])])
    order = batch.add_received(first)
    assert order == PlaceReceived(sequence=first, start=0, tokens=5, blocks=tuple(first.blocks))
    assert len(batch.running) == 2
    second = sequence([1, 2, 3, 4, 5, 8], received=5)
    assert batch.add_received(second) is None
    batch.remove(first)
    third = sequence([1, 2, 3, 4, 5, 9], received=5)
    assert batch.add_received(third) is None  # not before the one that waits
    plan = batch.plan()
    assert second in sizes(plan)
    assert list(batch.waiting) == [third]


def test_choices_share_full_blocks_and_part_ways_in_the_last() -> None:
    batch = scheduler()
    siblings = [sequence([1, 2, 3, 4, 5, 6]) for _ in range(2)]
    (leader,) = added(batch, sequence([1, 2, 3, 4, 5, 6], siblings=list(siblings)))
    run(batch, write=False)
    batch.fork(leader)
    for index, one in enumerate((leader, *siblings)):
        one.tokens.append(50 + index)
    assert batch.pool.free == 32 - 2
    plan = batch.plan()
    everybody = [leader, *siblings]
    assert sizes(plan) == dict.fromkeys(everybody, 1)
    assert len({one.blocks[0] for one in everybody}) == 1
    assert len({one.blocks[1] for one in everybody}) == 3
    # the last one left needs no copy
    assert plan.before == tuple(
        CopyBlock(source=siblings[1].blocks[1], target=one.blocks[1]) for one in everybody[:2]
    )


def test_received_choices_run_at_once() -> None:
    batch = scheduler()
    siblings = [sequence([1, 2, 3, 4, 5, 60 + index]) for index in range(2)]
    (leader,) = added(batch, sequence([1, 2, 3, 4, 5, 59], received=5, siblings=list(siblings)))
    plan = batch.plan()
    assert sizes(plan) == dict.fromkeys((leader, *siblings), 1)
    assert [type(order) for order in plan.before] == [PlaceReceived, CopyBlock, CopyBlock]


def test_choices_that_do_not_fit_together_are_written_one_after_the_other() -> None:
    batch = scheduler(blocks=3)
    siblings = [sequence([1, 2, 3, 4, 5, 60 + index]) for index in range(3)]
    (leader,) = added(batch, sequence([1, 2, 3, 4, 5, 59], received=5, siblings=list(siblings)))
    assert sizes(batch.plan()) == {leader: 1, siblings[0]: 1}
    assert list(batch.waiting) == siblings[1:]


def test_a_wide_request_waits_until_all_of_it_fits() -> None:
    batch = scheduler(max_running=3)
    (one,) = added(batch, sequence(2))
    run(batch)
    (wide,) = added(batch, sequence(2, siblings=[sequence(2), sequence(2)]))
    assert set(run(batch)) == {one}
    batch.remove(one)
    assert set(run(batch)) == {wide}


def test_what_ended_or_never_came_is_removed_without_a_trace() -> None:
    batch = scheduler()
    runs, waits = added(batch, sequence(20), sequence(20))
    batch.plan()
    for one in (waits, runs, sequence(3), runs):
        batch.remove(one)
    assert (batch.running, list(batch.waiting), batch.pool.free) == ([], [], 32)
    assert batch.plan() == Plan(before=(), chunks=())
