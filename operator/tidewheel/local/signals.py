"""Ctrl-C and SIGTERM as cancellation, so that whatever runs can end in its own order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any


def run_until_signalled(work: Coroutine[Any, Any, None]) -> None:
    """Runs `work`; SIGINT or SIGTERM cancels it, and its clean-up is awaited. Other errors pass through."""

    async def main() -> None:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()
        signalled = False

        def stop() -> None:
            nonlocal signalled
            # An impatient second Ctrl-C must not cut the clean-up of the first short.
            if not signalled:
                signalled = True
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        try:
            await task
        except asyncio.CancelledError:
            if not signalled:
                raise

    asyncio.run(main())
