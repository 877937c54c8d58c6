"""Computing a prompt whose KV a decode fetches meanwhile."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tidewheel_workers.serving.kv_buffer import GivenUp

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tidewheel_workers.serving.engine import Computed, Prompt
    from tidewheel_workers.serving.engine_loop import EngineLoop
    from tidewheel_workers.serving.kv_buffer import KVBuffer
    from tidewheel_workers.serving.kv_transport import HandOver, KVOffer, KVSender


class Unwanted(Exception):
    """The decode left, or the KV was withdrawn, before the prompt was computed."""


async def compute_early(
    engine: EngineLoop,
    prompt: Prompt,
    buffer: KVBuffer,
    kv: KVSender,
    *,
    begin: Callable[[HandOver], Awaitable[None]],
    bearer: str | None = None,
) -> Computed:
    """Offer the KV when the engine has taken the prompt, and compute it.

    Whatever ends the computation, the decode is told; whatever ends the offer ends the computation.

    Args:
        engine: computes.
        prompt: what.
        buffer: where to.
        kv: offers it.
        begin: passes on what a decode needs to know.
        bearer: as in `KVSender.offer`.

    Raises:
        Unwanted: nobody wants it any more.
        RequestError, EngineFailed: as in `EngineLoop.compute`.
    """
    offer: KVOffer | None = None

    def stop() -> None:
        computing.cancel()

    async def taken() -> None:
        nonlocal offer
        offer = kv.offer(buffer, bearer=bearer)
        offer.on_end(stop)
        await begin(offer.hand_over)

    computing = asyncio.ensure_future(engine.compute(prompt, buffer, taken=taken))
    end: Computed | GivenUp = GivenUp(reason="aborted", message="the request was ended at the prefill")
    try:
        end = await computing
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise Unwanted("nobody wants this prompt any more") from None
    except Exception as error:
        end = GivenUp(reason="not_computed", message=str(error))
        raise
    finally:
        if offer is not None:
            offer.finish(end)
    return end
