"""Who belongs to this worker's group, which of them are verified, and whether that is enough to serve; no I/O."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tidewheel_workers.serving.kv_wire import BYTE_ORDER, Hello, Refusal

if TYPE_CHECKING:
    from tidewheel.api.ranktable import Member, RankTable
    from tidewheel_workers.serving.engine import EngineIdentity
    from tidewheel_workers.serving.settings import WorkerSettings


class Membership:
    """One worker's view of its group.

    A peer is a member of the other role. It is verified as long as a connection to it stands over which both said a
    Hello that fits. The group has formed for this worker once every peer was verified at the same time; from then on
    one verified peer is enough, so that members come and go while the others serve. Whoever owns this may settle for
    fewer when that takes too long: a member that restarts must not wait for another that is dead.

    The decodes of a combined group need no prefill: for them it has formed, and they are ready, when the table names them.
    """

    def __init__(self, settings: WorkerSettings, identity: EngineIdentity) -> None:
        self._name, self._uid = settings.pod_name, settings.pod_uid
        self._group = settings.group
        self.role = settings.role
        self._identity = identity
        self.table: RankTable | None = None
        self._connections: Counter[str] = Counter()
        self._faults: dict[str, str] = {}
        self._is_patient = True
        self.has_formed = False

    @property
    def me(self) -> Member | None:
        """This worker in the table: by uid, or by name where the pod was not told its uid."""
        found = self._named
        return found if found is not None and found.role == self.role else None

    @property
    def is_reassigned(self) -> bool:
        """Whether the table gives this worker the other role: then it is no member in the one that it has."""
        found = self._named
        return found is not None and found.role != self.role

    @property
    def _named(self) -> Member | None:
        members = self.table.members if self.table is not None else ()
        for member in members:
            if member.uid == self._uid if self._uid else member.name == self._name:
                return member
        return None

    @property
    def peers(self) -> tuple[Member, ...]:
        """The members of the other role."""
        if self.table is None:
            return ()
        return self.table.of_role("decode" if self.role == "prefill" else "prefill")

    @property
    def verified(self) -> tuple[Member, ...]:
        """The peers to which a verified connection stands."""
        return tuple(peer for peer in self.peers if self._connections[peer.uid] > 0)

    @property
    def is_ready(self) -> bool:
        """Whether this worker may take requests."""
        return self.me is not None and self.has_formed and (self._needs_nobody or bool(self.verified))

    @property
    def explanation(self) -> str:
        """Why it is ready or not, for people."""
        if self.table is None:
            return "the group's rank table has not been published yet"
        if self.is_reassigned:
            return f"the rank table {self.table.digest()} gives pod {self._name} the other role"
        if self.me is None:
            return (
                f"pod {self._name} ({self._uid or 'no uid'}) is not in the rank table {self.table.digest()}"
            )
        missing = [peer for peer in self.peers if self._connections[peer.uid] == 0]
        if self._needs_nobody:
            return "the group is combined: decodes compute the prompts, too"
        if not self.peers:
            return "the rank table names no peer of the other role"
        if not missing:
            return f"all {len(self.peers)} peers are verified"
        return (
            f"{len(self.peers) - len(missing)} of {len(self.peers)} peers are verified; missing: "
            + "; ".join(
                f"{peer.name} at {peer.address}:{peer.kv_port} ({self._faults.get(peer.uid, 'has not connected')})"
                for peer in missing
            )
        )

    def update(self, table: RankTable) -> None:
        """Take a new table; a table of another group is refused by ValueError."""
        if table.group != self._group:
            raise ValueError(f"the rank table is of group {table.group}, this worker is in {self._group}")
        self.table = table
        self._faults = {peer.uid: self._faults[peer.uid] for peer in self.peers if peer.uid in self._faults}
        self._look()

    def settle(self) -> None:
        """From now on one verified peer is enough for the group to form."""
        self._is_patient = False
        self._look()

    def hello(self) -> Hello:
        """What this worker says of itself."""
        return Hello(
            name=self._name,
            uid=me.uid if (me := self.me) is not None else self._uid,
            role=self.role,
            group=self._group,
            model_digest=self._identity.model_digest,
            layout_digest=self._identity.layout_digest,
            ranktable_digest=self.table.digest() if self.table is not None else "",
        )

    def judge(self, hello: Hello) -> Refusal | None:
        """Why the sender of this Hello is no peer to exchange KV with; None when it is one.

        Digests of the table may differ for a moment while a new one spreads, so they do not count; being in it does.
        """
        peer = next((peer for peer in self.peers if peer.uid == hello.uid), None)
        rules = (
            ("not_formed", self.me is None, f"{self._name} has no rank table yet that names it"),
            ("wrong_group", hello.group != self._group, f"{hello.group!r} is not {self._group!r}"),
            ("unknown_member", peer is None, f"{hello.name} ({hello.uid}) is no peer in the rank table"),
            (
                "model_mismatch",
                hello.model_digest != self._identity.model_digest,
                f"{hello.name} serves model {hello.model_digest}, {self._name} {self._identity.model_digest}",
            ),
            (
                "layout_mismatch",
                hello.layout_digest != self._identity.layout_digest,
                f"{hello.name} lays KV out as {hello.layout_digest}, {self._name} as {self._identity.layout_digest}",
            ),
            (
                "byte_order_mismatch",
                hello.byte_order != BYTE_ORDER,
                f"{hello.name} is {hello.byte_order}-endian",
            ),
        )
        for reason, applies, message in rules:
            if applies:
                if peer is not None:
                    self._faults[peer.uid] = f"{reason}: {message}"
                return Refusal(reason=reason, message=message[:1024])
        return None

    def connections(self, uid: str) -> int:
        """How many stand to a peer."""
        return self._connections[uid]

    def connected(self, uid: str) -> None:
        """A connection to a judged peer stands."""
        self._connections[uid] += 1
        self._faults.pop(uid, None)
        self._look()

    def disconnected(self, uid: str) -> None:
        """One of them is gone."""
        self._connections[uid] -= 1
        if self._connections[uid] <= 0:
            del self._connections[uid]
            self._faults[uid] = "its connection closed"

    def failed(self, uid: str, fault: str) -> None:
        """An attempt to reach a peer failed."""
        self._faults[uid] = fault

    @property
    def _needs_nobody(self) -> bool:
        return self.role == "decode" and self.table is not None and self.table.combined

    def _look(self) -> None:
        wanted = len(self.peers) if self._is_patient else 1
        has_peers = bool(self.peers) and len(self.verified) >= wanted
        if self.me is not None and (self._needs_nobody or has_peers):
            self.has_formed = True
