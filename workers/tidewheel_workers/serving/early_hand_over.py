"""Prefills that tell in the head of their answer where the KV will be: the gateway goes on, and the body follows later."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

from tidewheel_workers.serving.kv_transport import HAND_OVER_HEADER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tidewheel_workers.serving.http1.client import Answer

log = logging.getLogger(__name__)

#: The body of an answer with one token.
_MOST_BODY_BYTES = 1 << 20


class EarlyHandOvers:
    """Follows such answers to their ends.

    Closing one would take its prompt back, so each is kept until its body has come. Nobody waits for that: when the
    computation fails the decode is told over its own connection. A request that ends before withdraws its KV, by which
    the prefill ends its answer; the time given is only for a prefill that hangs.
    """

    def __init__(self) -> None:
        self._following: set[asyncio.Task[None]] = set()

    def take(self, answer: Answer, *, then: Callable[[], None], until: float) -> Mapping[str, Any] | None:
        """The hand-over in an answer's head, and the answer itself is ours then; None when there is none.

        Args:
            answer: its head has come.
            then: called when the answer has ended.
            until: when to close it at the latest, on the monotonic clock.
        """
        text = answer.headers.get(HAND_OVER_HEADER)
        if text is None or answer.status != 200:
            return None
        try:
            hand_over = json.loads(text)
        except ValueError:
            return None
        if not isinstance(hand_over, dict) or not hand_over.get("do_remote_prefill"):
            return None
        answer.wait_until(until)
        task = asyncio.get_running_loop().create_task(self._follow(answer))
        self._following.add(task)
        task.add_done_callback(self._following.discard)
        task.add_done_callback(lambda _: then())
        return hand_over

    async def close(self) -> None:
        """Close all of them."""
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)

    async def _follow(self, answer: Answer) -> None:
        try:
            await answer.read(_MOST_BODY_BYTES)
        except OSError as error:
            # its decode has noticed, or will be told by whoever waits for the first token
            log.info("a prefill that had told where its KV would be did not end its answer: %s", error)
        finally:
            answer.close()
