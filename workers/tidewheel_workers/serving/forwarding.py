"""How one request finds a prefill and a decode: a state machine without sockets, clocks or randomness of its own.

P/D-Serve §3.5: there are no queues in the servers. The gateway asks a prefill; it takes the prompt at once or refuses at
once; refused, the request asks others or waits in the gateway for its turn, which `dispatch` gives, until its TTFT budget is
spent. Then a decode of the same group is found the same way. In a combined group there is no prefill: its decodes are asked in
the prefills' place, and the answer comes from there.

When a server is lost the request goes on with another. A stream that has begun is resumed: what the client has of the answer
is computed with the prompt by another prefill, and another decode writes the rest.

`Forwarding.start` and `Forwarding.handle` give the instructions to perform, in order; the last one says what to do next, and
its outcome is the next event; only `Began` comes while a decode is still being asked, and asks for nothing. An event that does
not belong to what is being done changes nothing. Every request ends by exactly one `Finish`, `Fail`, `BreakStream` or
`EndStream`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tidewheel_workers.serving.dispatch import OUT_OF_REACH, Call, Dispatch, out_of_reach
from tidewheel_workers.serving.errors import ApiError, unavailable
from tidewheel_workers.serving.forwarding_steps import (
    Answered,
    Ask,
    AskDecode,
    AskPrefill,
    Began,
    BreakStream,
    ClientGone,
    Ending,
    EndStream,
    Event,
    Fail,
    Finish,
    Instruction,
    Lost,
    OutOfTime,
    Prefilled,
    Refused,
    Rejected,
    ReleaseKV,
    RequestTimedOut,
    TransferFailed,
    Wait,
    Woke,
)
from tidewheel_workers.serving.openai_api import CHARACTERS_PER_TOKEN

if TYPE_CHECKING:
    from tidewheel_workers.serving.candidates import Role
    from tidewheel_workers.serving.dispatch import Ticket
    from tidewheel_workers.serving.ledger import Cause, Hold

#: A request that has outlived so many servers may be what ends them.
MOST_LOSSES = 3
#: The codes of requests whose time for the first token was over, or would have been.
LATE_CODES = frozenset(
    {
        "all_slots_busy",
        "backends_unavailable",
        "first_token_late",
        "no_backend_ready",
        "too_many_waiting",
        OUT_OF_REACH,
    }
)

OnDecodeLoss = Literal["Resume", "Error", "DefaultText"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPolicy:
    """What becomes of a stream whose decode is lost."""

    on_decode_loss: OnDecodeLoss = "Resume"
    default_text: str = ""


@dataclass(slots=True, kw_only=True)
class Forwarding:
    """One request; the clock of all times is the caller's.

    Args:
        call: what is known of it.
        dispatch: the gateway's, which all its requests share.
        policy: what becomes of it as a stream whose decode is lost.
    """

    call: Call
    dispatch: Dispatch
    policy: LossPolicy = LossPolicy()

    inquiries: int = 0
    losses: int = 0
    has_begun: bool = False
    has_ended: bool = False
    ticket: Ticket = field(init=False)
    _deadline: float = 0.0
    _doing: Ask | Wait | None = None
    _asked_at: float = 0.0
    _prefill_asked_at: float = 0.0
    _prefill: Hold | None = None
    _decode: Hold | None = None
    _group: str = ""
    _hand_over: Mapping[str, Any] | None = None
    _resumed: tuple[int, ...] = ()
    _causes: set[Cause] = field(default_factory=set)  # of the refusals so far

    @property
    def asking(self) -> Role:
        """Which role was asked last."""
        return "decode" if isinstance(self._doing, AskDecode) else "prefill"

    def start(self, at: float) -> list[Instruction]:
        """The first instruction."""
        self.ticket = self.dispatch.ticket(self.call, at)
        self._deadline = self.ticket.deadline
        return self._noted(self._line_up(at))

    def handle(self, event: Event, at: float) -> list[Instruction]:
        """What to do now."""
        if self.has_ended:
            return []
        match event, self._doing:
            case ClientGone(), _:
                return self._noted(self._end(Finish(), at))
            case RequestTimedOut(), _:
                error = ApiError(504, "request_timeout", "the request took longer than this server allows")
                return self._noted(self._fail(error, at))
            case Woke(), Wait():
                return self._noted(self._go_on(at))
            case Prefilled(), AskPrefill():
                return self._noted(self._prefilled(event, at))
            case ((Refused() | Rejected() | OutOfTime() | Lost()), (AskPrefill() | AskDecode())):
                return self._noted(self._failed(event, at))
            case TransferFailed(), AskDecode():
                return self._noted(self._failed(event, at))
            case Began(), AskDecode():
                self._began(at)
            case Answered(), AskDecode():
                self._hand_over = None  # the decode had it
                if self._decode is not None and self._prefill is None and not self.has_begun:
                    # a whole answer of one that did both shows only now that it was taken
                    self.dispatch.took(self.ticket, self._decode, at)
                return self._noted(self._end(Finish(), at))
        return []

    # ---- what an event means

    def _prefilled(self, event: Prefilled, at: float) -> list[Instruction]:
        if self._prefill is not None:
            self.dispatch.took(self.ticket, self._prefill, at)
            self.dispatch.pace.took(
                "prefill", self._characters, at - self._asked_at, at, beside=self._prefill.beside
            )
        self._hand_over = event.hand_over
        return self._line_up(at)

    def _began(self, at: float) -> None:
        if self._decode is None or self._decode.state == "over":
            return
        self.dispatch.took(self.ticket, self._decode, at)
        if self._hand_over is not None and self._prefill is not None:
            pace, characters = self.dispatch.pace, self._characters
            pace.took("decode", characters, at - self._asked_at, at)
            taken, beside = at - self._prefill_asked_at, self._prefill.beside
            pace.took("first token", characters, taken, at, beside=beside)
        elif self._hand_over is None:
            seconds, beside = at - self._asked_at, self._decode.beside
            self.dispatch.pace.took("both", self._characters, seconds, at, beside=beside)
        self.has_begun = True
        self._hand_over = None  # the decode has it
        self._leave_prefill(at)

    def _failed(
        self, event: Refused | Rejected | OutOfTime | Lost | TransferFailed, at: float
    ) -> list[Instruction]:
        hold = self._prefill if self.asking == "prefill" else self._decode
        was_decode = self.asking == "decode"
        if hold is None:
            raise RuntimeError("a backend that was never asked has answered")
        match event:
            case Refused(cause=cause, retry_after=retry_after):
                self._causes.add(cause)
                self.dispatch.refused(self.ticket, hold, cause, at, retry_after=retry_after)
                return self._line_up(at)
            case Rejected():
                self.dispatch.gave_back(hold, at)
                if self.has_begun:
                    return self._break(f"another server refused to resume it with {event.status}", at)
                return self._end(Finish(rejection=event), at)
            case OutOfTime():
                self.dispatch.lost(self.ticket, hold, at)
                if at >= self._deadline:
                    if self._prefill is not None:
                        taken, beside = at - self._prefill_asked_at, self._prefill.beside
                        self.dispatch.pace.took_longer(
                            "first token", self._characters, taken, at, beside=beside
                        )
                    elif was_decode:
                        seconds, beside = at - self._asked_at, hold.beside
                        self.dispatch.pace.took_longer("both", self._characters, seconds, at, beside=beside)
                    return self._out_of_time(at)
                event = Lost(what=f"{hold.backend.name} did not answer", sent=())
            case TransferFailed():
                # when the KV did not come, the decode is there to say so
                self.dispatch.gave_back(hold, at)
                if self._prefill is not None:
                    self.dispatch.lost(self.ticket, self._prefill, at)
            case Lost():
                self.dispatch.lost(self.ticket, hold, at)
        return self._after_loss(event, at, was_decode=was_decode)

    def _after_loss(self, event: Lost | TransferFailed, at: float, *, was_decode: bool) -> list[Instruction]:
        self.losses += 1
        if isinstance(event, Lost) and self.has_begun and was_decode:
            if event.is_complete:
                return self._end(EndStream(), at)
            if self.policy.on_decode_loss == "DefaultText":
                return self._end(EndStream(text=self.policy.default_text), at)
            if self.policy.on_decode_loss == "Error" or event.sent is None:
                return self._break(event.what, at)
            self._resumed += event.sent
        released = self._release(at)
        if self.losses >= MOST_LOSSES:
            why = f"{self.losses} attempts failed; the last: {event.what}"
            ended = (
                self._break(why, at) if self.has_begun else self._fail(ApiError(502, "servers_lost", why), at)
            )
            return released + ended
        if was_decode and (self.has_begun or not self.call.is_stream):
            # the first token came in time, or nobody could have seen it; what is done again has as long again
            self._deadline = max(self._deadline, at + self.call.ttft_seconds)
            self.ticket.deadline = self._deadline
            self.ticket.must_be_served = True
        return released + self._line_up(at)

    # ---- what to do next

    def _line_up(self, at: float) -> list[Instruction]:
        """Find the next backend."""
        if self._hand_over is not None and not self.dispatch.can_decode(self._group):
            return self._give_up_group(at)
        role: Role = "prefill" if self._hand_over is None else "decode"
        if at >= self._deadline:
            return self._out_of_time(at)
        error = self.dispatch.enter(self.ticket, role, at, group=self._group if role == "decode" else "")
        return self._go_on(at) if error is None else self._fail(error, at)

    def _give_up_group(self, at: float) -> list[Instruction]:
        """The group left while the prompt was computed; its KV is of no use to another."""
        self.dispatch.leave(self.ticket, at)
        return self._release(at) + self._line_up(at)

    def _go_on(self, at: float) -> list[Instruction]:
        """Ask whom the dispatch says; if it says nobody, wait; without time, give up."""
        if at >= self._deadline:
            return self._out_of_time(at)
        hold, self.ticket.hold = self.ticket.hold, None
        if hold is not None:
            self._asked_at = at
            self.inquiries += 1
            return [self._ask(hold, at)]
        until = self._deadline
        if self._hand_over is None:
            until = min(until, self.dispatch.gives_up_at(self.ticket, at))
            if at >= until:
                return self._out_of_time(at)
        elif not self.dispatch.can_decode(self._group):
            return self._give_up_group(at)
        if not self.ticket.is_waiting:
            return self._line_up(at)  # it was let go on by something that holds no longer
        return [Wait(until=until)]

    def _ask(self, hold: Hold, at: float) -> Ask:
        pace, role = self.dispatch.pace, self.ticket.role
        does_both = role == "decode" and self._hand_over is None
        patience = pace.patience_seconds("both" if does_both else role, self._characters)
        until = min(self._deadline, at + patience)
        if role == "prefill":
            self._prefill, self._group, self._prefill_asked_at = hold, self.ticket.group, at
            return AskPrefill(backend=hold.backend, until=until, resumed=self._resumed)
        self._decode = hold
        if self._prefill is not None and self._hand_over is not None and not self.call.is_stream:
            # a whole answer does not show when its KV was fetched
            fetched_at = at + pace.transfer_seconds(self._characters)
            self.dispatch.ledger.will_give_back(self._prefill, fetched_at)
        return AskDecode(backend=hold.backend, hand_over=self._hand_over, until=until, resumed=self._resumed)

    @property
    def _characters(self) -> int:
        return self.call.facts.characters + CHARACTERS_PER_TOKEN * len(self._resumed)

    # ---- how it ends

    def _break(self, why: str, at: float) -> list[Instruction]:
        return self._end(BreakStream(error=_interrupted(why)), at)

    def _out_of_time(self, at: float) -> list[Instruction]:
        if self.has_begun:
            return self._break("no other server could resume it in time", at)
        if "busy" in self._causes:
            code, why = "all_slots_busy", "every server was busy"
        elif self._causes:
            code, why = "backends_unavailable", "no server could be reached"
        elif self.inquiries:
            code, why = "first_token_late", "the servers are too slow"
        elif self.dispatch.can_serve(self.call):
            code, why = "all_slots_busy", "every server was busy"
        else:
            code, why = "no_backend_ready", "no server is ready"
        if at < self._deadline:
            # early intervention: nobody could serve it in time
            return self._fail(out_of_reach(f"{why}, and the first token could not come in time any more"), at)
        return self._fail(
            unavailable(code, f"{why} until the time for the first token was over; try again"), at
        )

    def _fail(self, error: ApiError, at: float) -> list[Instruction]:
        return self._end(BreakStream(error=error) if self.has_begun else Fail(error=error), at)

    def _end(self, ending: Ending, at: float) -> list[Instruction]:
        self.has_ended = True
        released = self._release(at)
        if self._decode is not None:
            self.dispatch.gave_back(self._decode, at)
        self.dispatch.leave(self.ticket, at)
        return [*released, ending]

    def _release(self, at: float) -> list[Instruction]:
        """Give up the KV that waits; the prefill ignores it when a decode has it already."""
        prefill, hand_over, self._hand_over = self._prefill, self._hand_over, None
        self._leave_prefill(at)
        if hand_over is None or prefill is None:
            return []
        return [ReleaseKV(backend=prefill.backend, hand_over=hand_over)]

    def _leave_prefill(self, at: float) -> None:
        if self._prefill is not None:
            self.dispatch.gave_back(self._prefill, at)
            self._prefill = None

    def _noted(self, instructions: list[Instruction]) -> list[Instruction]:
        """The same, once the last one is known as what is being done."""
        last = instructions[-1]
        self._doing = last if isinstance(last, AskPrefill | AskDecode | Wait) else None
        return instructions


def _interrupted(why: str) -> ApiError:
    return ApiError(502, "stream_interrupted", f"the server that wrote this answer was lost: {why}")
