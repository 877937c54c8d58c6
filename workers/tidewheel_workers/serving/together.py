"""Several exchanges answer one client: a completions request with several prompts, each with a prefill of its own."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from tidewheel_workers.serving.exchange import Exchange
from tidewheel_workers.serving.http1.messages import Response
from tidewheel_workers.serving.openai_answers import sse
from tidewheel_workers.serving.replies import Parts
from tidewheel_workers.serving.several_prompts import Merging, split

if TYPE_CHECKING:
    from tidewheel_workers.serving.errors import ApiError
    from tidewheel_workers.serving.gateway import Gateway
    from tidewheel_workers.serving.openai_api import CompletionRequest
    from tidewheel_workers.serving.replies import Caller, Outlet


class Together:
    """One request with several prompts; it ends as an `Exchange` does."""

    def __init__(
        self, gateway: Gateway, caller: Caller, body: dict[str, Any], request: CompletionRequest
    ) -> None:
        bodies = split(body, request)
        self._merging = Merging(
            prompts=len(bodies), choices=request.choices, tells_usage=request.include_usage
        )
        self._parts = Parts(caller, self._merging)
        self._exchanges = [
            Exchange(gateway, part, one) for part, one in zip(self._parts.all, bodies, strict=True)
        ]
        self.scenario = self._exchanges[0].scenario
        self.error: ApiError | None = None

    @property
    def first_token_seconds(self) -> float | None:
        """As in `Exchange`: the first of any prompt."""
        known = [one.first_token_seconds for one in self._exchanges if one.first_token_seconds is not None]
        return min(known, default=None)

    @property
    def prompt_tokens(self) -> int:
        """As in `Exchange`, over all prompts."""
        return sum(one.prompt_tokens for one in self._exchanges)

    async def run(self) -> Response | Outlet:
        """Answer all prompts, or tell the first error; the others are given up then."""
        tasks = {asyncio.ensure_future(one.run()): one for one in self._exchanges}
        try:
            answers = await self._answers(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._parts.outlet is not None:
            if self.error is not None and not self._merging.has_broken:
                self._parts.outlet.write(sse(self.error.to_body()))
            self._parts.outlet.end()
            return self._parts.outlet
        if self.error is not None:
            return answers[0]
        return Response.of_json(self._merging.whole([json.loads(answer.body) for answer in answers]))

    async def _answers(self, tasks: dict[asyncio.Task[Response | Outlet], Exchange]) -> list[Response]:
        """The whole answers in the order of the prompts; after an error, only the answer that tells it."""
        pending = set(tasks)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                answer = task.result()
                self.error = self.error or tasks[task].error
                if self.error is not None:
                    return [answer] if isinstance(answer, Response) else []
        results = [task.result() for task in tasks]
        return [answer for answer in results if isinstance(answer, Response)]
