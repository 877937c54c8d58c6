"""Who computes how much in the next pass, and with which blocks; decides only, so that any order of events can be tried.

Continuous batching with chunked prompts, as Orca (OSDI 2022), Sarathi-Serve (arXiv 2403.02310) and vLLM do it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidewheel_workers.llm.blocks import BlockPool
    from tidewheel_workers.llm.sequence import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The tokens of one sequence that the next pass computes."""

    sequence: Sequence
    start: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyBlock:
    """Copy a block that another sequence goes on using."""

    source: int
    target: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceReceived:
    """Put keys and values that came from elsewhere into blocks; the sequence may have lost these again meanwhile."""

    sequence: Sequence
    start: int
    tokens: int
    blocks: tuple[int, ...]  # of the sequence's first tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One pass: what is done before it, in this order, and what it computes."""

    before: tuple[CopyBlock | PlaceReceived, ...]
    chunks: tuple[Chunk, ...]


class Scheduler:
    """Sequences that run and sequences that wait, first come, first served.

    Everybody who writes gets one token in each pass; what is left of the budget goes to prompts, the oldest first. A
    prompt takes blocks for all its tokens when its turn comes, an answer takes one more each time it fills the last. When
    none is free for an answer, the newest sequence gives all of its blocks back and waits to be computed again, ahead of
    everybody who has not begun. So the oldest always goes on and ends, and with it everybody.
    """

    def __init__(self, pool: BlockPool, *, block_size: int, max_running: int, batch_tokens: int) -> None:
        self.pool = pool
        self.block_size = block_size
        self.max_running = max_running
        self.batch_tokens = batch_tokens
        self.waiting: deque[Sequence] = deque()  # oldest first, and newer than all that run
        self.running: list[Sequence] = []  # oldest first
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0

    def add(self, sequence: Sequence) -> None:
        """A sequence waits for its turn. Alone it must fit into the pool, and its width into `max_running`."""
        self.waiting.append(sequence)

    def add_received(self, sequence: Sequence) -> PlaceReceived | None:
        """A sequence whose prompt was computed elsewhere begins now if nobody waits and it fits; otherwise it waits.

        What is to be placed can then be placed at once, and need not be kept until the next pass.
        """
        self.waiting.append(sequence)
        if len(self.waiting) > 1 or not self._can_begin(sequence):
            return None
        draft = _Draft(budget=0)
        self._begin(self.waiting.popleft(), draft)
        (order,) = draft.before
        return order if isinstance(order, PlaceReceived) else None

    def remove(self, sequence: Sequence) -> None:
        """A sequence that runs or waits has ended; one that is in neither place is left alone."""
        if sequence.runs:
            self.running.remove(sequence)
            self._give_back(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def plan(self) -> Plan:
        """Decide on the next pass. Nobody comes in while somebody has to give way."""
        draft = _Draft(budget=self.batch_tokens)
        preempted_before = self.preemptions
        for sequence in list(self.running):
            if sequence.missing == 1:
                self._schedule(sequence, draft)
        # many answers must not starve the prompts
        draft.budget = max(draft.budget, self.block_size)
        for sequence in list(self.running):
            if sequence.missing > 1:
                self._schedule(sequence, draft)
        while self.waiting and draft.budget > 0 and self.preemptions == preempted_before:
            if not self._can_begin(self.waiting[0]):
                break
            for sequence in self._begin(self.waiting.popleft(), draft):
                self._schedule(sequence, draft)
        return Plan(before=tuple(draft.before), chunks=tuple(draft.chunks))

    def advance(self, chunk: Chunk) -> None:
        """A chunk was computed; whole blocks can be found by others from now on."""
        sequence = chunk.sequence
        self._name(sequence, chunk.start, chunk.start + chunk.tokens)
        sequence.computed = chunk.start + chunk.tokens

    def fork(self, sequence: Sequence) -> list[Sequence]:
        """The siblings of a sequence whose prompt is in its blocks run beside it, with the same blocks."""
        siblings, sequence.siblings = sequence.siblings, []
        for sibling in siblings:
            self.pool.share(sequence.blocks)
            sibling.begin_like(sequence)
        place = self.running.index(sequence) + 1
        self.running[place:place] = siblings
        return siblings

    def distrust(self, sequence: Sequence) -> None:
        """What was computed for a sequence is not to be used for another."""
        self.pool.forget(sequence.blocks)

    def cached_tokens(self, digests: Iterator[bytes]) -> int:
        """Tokens of a prompt, given the names of its blocks, that are in the cache; from any thread."""
        found = 0
        for digest in digests:
            if not self.pool.has(digest):
                break
            found += self.block_size
        return found

    def _schedule(self, sequence: Sequence, draft: _Draft) -> None:
        tokens = min(sequence.missing, max(draft.budget, 0)) if sequence.missing > 1 else 1
        if tokens and self._has_room(sequence, draft):
            draft.budget -= tokens
            draft.chunks.append(Chunk(sequence=sequence, start=sequence.computed, tokens=tokens))

    def _has_room(self, sequence: Sequence, draft: _Draft) -> bool:
        """Get the blocks that the sequence's tokens need, at the cost of newer ones; False when it gave way itself."""
        while sequence.runs:
            wanted = self._blocks_for(len(sequence.tokens)) - len(sequence.blocks)
            at = sequence.computed // self.block_size
            is_shared = at < len(sequence.blocks) and self.pool.holders(sequence.blocks[at]) > 1
            if not is_shared and wanted <= 0:
                return True
            taken = self.pool.take(1 if is_shared else wanted, after=sequence.blocks[-1])
            if taken is None:
                self._preempt_newest()
            elif is_shared:
                draft.before.append(CopyBlock(source=sequence.blocks[at], target=taken[0]))
                self.pool.give_back([sequence.blocks[at]])
                sequence.blocks[at] = taken[0]
            else:
                sequence.blocks += taken
        return False

    def _preempt_newest(self) -> None:
        if len(self.running) == 1:
            raise RuntimeError("the only sequence does not fit into the KV cache")
        newest = self.running.pop()
        self._give_back(newest)
        self.waiting.appendleft(newest)
        self.preemptions += 1

    def _give_back(self, sequence: Sequence) -> None:
        self.pool.give_back(sequence.blocks)
        sequence.blocks, sequence.computed, sequence.runs = [], 0, False

    def _can_begin(self, sequence: Sequence) -> bool:
        if not self.running:
            return True
        if sum(one.width for one in self.running) + sequence.width > self.max_running:
            return False
        cached = self.pool.find(sequence.reusable(self.block_size))
        needed = self._blocks_for(len(sequence.tokens)) - sum(self.pool.holders(one) > 0 for one in cached)
        # choices part ways in the last block, and those who write soon need one more: who begins is not to push out
        # somebody else at once, or to be pushed out
        spare = sequence.width - 1 + sum(one.width for one in self.running if one.will_write)
        return needed + spare <= self.pool.free

    def _begin(self, sequence: Sequence, draft: _Draft) -> list[Sequence]:
        """Give a sequence its blocks; it runs now, and with it its siblings if there is nothing to compute first."""
        size = self.block_size
        cached = self.pool.find(sequence.reusable(size))
        self.pool.share(cached)
        after = cached[-1] if cached else None
        taken = self.pool.take(self._blocks_for(len(sequence.tokens)) - len(cached), after=after)
        if taken is None:
            raise RuntimeError("a sequence was let in and does not fit into the KV cache")
        sequence.blocks = cached + taken
        sequence.computed = len(cached) * size
        self._count(sequence)
        sequence.runs = True
        self.running.append(sequence)
        if not sequence.received:
            return [sequence]
        draft.before.append(self._receive(sequence))
        return [sequence, *self.fork(sequence)]

    def _receive(self, sequence: Sequence) -> PlaceReceived:
        start, end = sequence.computed, sequence.received
        # whoever finds these blocks before the next pass is computed after they are filled
        self._name(sequence, start, end)
        sequence.computed, sequence.received = end, 0
        return PlaceReceived(
            sequence=sequence, start=start, tokens=end - start, blocks=tuple(sequence.blocks)
        )

    def _count(self, sequence: Sequence) -> None:
        if sequence.cached is None:
            sequence.cached = sequence.computed
            if not sequence.received:
                self.prefix_queries += len(sequence.tokens)
                self.prefix_hits += sequence.cached

    def _name(self, sequence: Sequence, start: int, end: int) -> None:
        first, last = start // self.block_size, end // self.block_size
        for index, digest in islice(enumerate(sequence.digests(self.block_size)), first, last):
            self.pool.name(sequence.blocks[index], digest)

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)


@dataclass(slots=True, kw_only=True)
class _Draft:
    """A plan in the making."""

    budget: int  # tokens that may still be computed
    before: list[CopyBlock | PlaceReceived] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
