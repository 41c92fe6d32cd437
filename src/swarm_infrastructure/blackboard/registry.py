"""Who works on a board: agents, whether they live, and the gates that stop them from claiming.

An agent that has not been heard of for ``dead_after_s`` is offline; nothing else follows from that, because its claims
come back when their leases end. A gate stops new claims of one agent, a role or all; revoking also takes an agent's
claims away at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import orjson

from ..errors import ClaimLostError, InvalidInputError, ItemNotFoundError
from ..keys import check_id, check_name
from .claims import Claim, Ending
from .clock import list_older, read_clock_ms
from .items import Item, clean_text, dump_json

if TYPE_CHECKING:
    from .blackboard import Blackboard

__all__ = ["UNKNOWN", "AgentRegistry", "AgentState", "AgentStatus", "Order"]

UNKNOWN = "unknown"  # in place of an order: Redis does not know the agent, it should introduce itself


class Order(StrEnum):
    """What an agent can be told to do once (a gate stands until it is opened)."""

    DRAIN = "drain"  #: claim no more, finish what is in hand, leave
    SHUTDOWN = "shutdown"  #: the same within the grace; the rest is handed back


class AgentStatus(StrEnum):
    """What an agent is doing."""

    IDLE = "idle"
    WORKING = "working"
    ERROR = "error"  #: its last cycle failed; it goes on after a pause
    PAUSED = "paused"
    OFFLINE = "offline"  #: no heartbeat for too long


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentState:
    """An agent, as it is known on the board."""

    agent_id: str
    role: str
    status: AgentStatus
    capabilities: tuple[str, ...] = ()
    current_items: tuple[str, ...] = ()  #: what it holds now
    tasks_completed: int = 0
    tasks_failed: int = 0
    tasks_handed_back: int = 0
    total_tokens_used: int = 0
    last_heartbeat_ms: int = 0  #: on Redis' clock; 0 if it never sent one
    age_s: float = 0.0  #: since the last heartbeat
    gate: str = ""  #: why it may not claim, "" if it may
    facts: dict[str, Any] = field(default_factory=dict)  #: host, pid and whatever it said of itself

    def as_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self) | {"status": self.status.value}


class AgentRegistry:
    """The agents of one board."""

    def __init__(self, blackboard: Blackboard, *, dead_after_s: float) -> None:
        self._blackboard, self._dead_after_s = blackboard, dead_after_s
        self._store, self._keys = blackboard.store, blackboard.keys

    async def register(self, agent_id: str, role: str, capabilities: Sequence[str] = (), **facts: Any) -> None:
        """Make an agent known, or describe it anew.

        Raises:
            InvalidInputError: a name that can't be one.
        """
        row = (agent_id, role, {"capabilities": [str(tag) for tag in capabilities], **facts})
        _description(*row)  # before anything changes
        # an order that a dead agent of this id has left behind is not for this one
        await self._store.command("HDEL", self._keys.orders, check_id("agent id", agent_id))
        await self.beat_all([row])

    async def unregister(self, agent_id: str) -> None:
        """Forget an agent. Its claims stay until they end."""
        check_id("agent id", agent_id)
        keys = self._keys
        await self._store.commands(
            ("HDEL", keys.agents, agent_id),
            ("ZREM", keys.beats, agent_id),
            ("HDEL", keys.receipts, agent_id),
            ("HDEL", keys.orders, agent_id),
        )

    async def forget_dead(self, after_s: float) -> int:
        """Forget agents without a heartbeat for *after_s*; returns how many."""
        dead = await list_older(self._store, self._keys, self._keys.beats, after_s)
        for agent_id in dead:
            await self.unregister(agent_id)
        return len(dead)

    async def _alive(self) -> set[str]:
        since = await read_clock_ms(self._store, self._keys) - int(self._dead_after_s * 1000)
        return {name.decode() for name in await self._store.command("ZRANGEBYSCORE", self._keys.beats, since, "+inf")}

    async def beat(self, agent_id: str) -> None:
        """Say that a registered agent lives."""
        text = await self._store.command("HGET", self._keys.agents, check_id("agent id", agent_id))
        if text is None:
            raise ItemNotFoundError(agent_id, f"{self._blackboard.board.name} (agents)")
        await self.beat_all([(agent_id, orjson.loads(text)["role"], None)])

    async def beat_all(self, agents: Sequence[tuple[str, str, dict[str, Any] | None]]) -> Sequence[tuple[str, str]]:
        """Say that these agents (id, role, what changed in its description) live, in one call.

        Returns:
            For each the gate that is shut for it, or "", and its order (see `order`), `UNKNOWN`, or "".
        """
        args: list[Any] = []
        for agent_id, role, facts in agents:
            check_id("agent id", agent_id)
            check_name("role", role)
            args += (agent_id, role, _description(agent_id, role, facts) if facts is not None else b"")
        keys = self._keys
        answer = await self._store.call(
            "heartbeat", [keys.rules, keys.agents, keys.beats, keys.gates, keys.orders], args
        )
        gates, orders = answer[1 : len(agents) + 1], answer[len(agents) + 1 :]
        return [(gate.decode(), order.decode()) for gate, order in zip(gates, orders, strict=True)]

    async def update(self, agent_id: str, **facts: Any) -> None:
        """Change what is known of an agent (``status``, ``role``, ``capabilities`` or anything else)."""
        text = await self._store.command("HGET", self._keys.agents, check_id("agent id", agent_id))
        known = orjson.loads(text) if text else {"role": "agent"}
        merged = known | facts
        await self.beat_all([(agent_id, str(merged["role"]), merged)])

    async def find(self, agent_id: str) -> AgentState | None:
        """The agent, or None."""
        return next((agent for agent in await self.list() if agent.agent_id == agent_id), None)

    async def list(self) -> Sequence[AgentState]:
        """Every agent, by id."""
        keys = self._keys
        agents, beats, gates, tallies, clock, offset = await self._store.commands(
            ("HGETALL", keys.agents),
            ("ZRANGE", keys.beats, 0, -1, "WITHSCORES"),
            ("HGETALL", keys.gates),
            ("HGETALL", keys.tallies),
            ("TIME",),
            ("HGET", keys.rules, "clock_offset_ms"),
        )
        now_ms = int(clock[0]) * 1000 + int(clock[1]) // 1000 + int(offset or 0)
        named = [name for name, _ in _pairs(agents)]
        tokens = await self._tokens(named)
        last = {agent.decode(): int(ms) for agent, ms in _pairs(beats)}
        shut = {name.decode(): why.decode() for name, why in _pairs(gates)}
        endings = {name.decode(): int(n) for name, n in _pairs(tallies)}
        held: dict[str, tuple[str, ...]] = {}
        for item in await self._claimed():
            held[item.holder] = (*held.get(item.holder, ()), item.id)
        states = []
        for name, text in _pairs(agents):
            agent_id, facts = name.decode(), orjson.loads(text)
            states.append(
                self._state(agent_id, facts, now_ms - last.get(agent_id, 0), last, shut, endings, held, tokens)
            )
        return sorted(states, key=lambda state: state.agent_id)

    def _state(
        self,
        agent_id: str,
        facts: dict[str, Any],
        age_ms: int,
        last: dict[str, int],
        shut: dict[str, str],
        endings: dict[str, int],
        held: dict[str, tuple[str, ...]],
        tokens: Mapping[str, int],
    ) -> AgentState:
        role = str(facts.pop("role", ""))
        status = AgentStatus(facts.pop("status", AgentStatus.IDLE))
        gate = shut.get(f"agent:{agent_id}") or shut.get(f"role:{role}") or shut.get("*") or ""
        items = held.get(agent_id, ())
        if age_ms > self._dead_after_s * 1000:
            status = AgentStatus.OFFLINE
        elif gate:
            status = AgentStatus.PAUSED
        elif items and status is AgentStatus.IDLE:
            status = AgentStatus.WORKING
        return AgentState(
            agent_id=agent_id,
            role=role,
            status=status,
            capabilities=tuple(facts.pop("capabilities", ())),
            current_items=items,
            tasks_completed=endings.get(f"{agent_id}|completed", 0),
            tasks_failed=endings.get(f"{agent_id}|failed", 0) + endings.get(f"{agent_id}|quarantined", 0),
            tasks_handed_back=endings.get(f"{agent_id}|handed_back", 0) + endings.get(f"{agent_id}|revoked", 0),
            total_tokens_used=tokens.get(agent_id, 0),
            last_heartbeat_ms=last.get(agent_id, 0),
            age_s=round(max(age_ms, 0) / 1000, 3),
            gate=gate_text(gate),
            facts=facts,
        )

    async def _claimed(self) -> Sequence[Item]:
        queries = self._blackboard.queries
        lanes = await queries.timed_lanes()
        return [item for item in await queries.timed(lanes) if item.holder]

    async def _tokens(self, names: Sequence[bytes]) -> dict[str, int]:
        """Tokens that each agent's model calls were booked with (see ``70_money.lua``)."""
        if not names:
            return {}
        rows = await self._store.command("HMGET", self._keys.spend, *(b"t|agent:" + name for name in names))
        return {name.decode(): int(row.split(b",")[2]) for name, row in zip(names, rows, strict=True) if row}

    # -- gates ------------------------------------------------------------------------------------------------------

    async def pause(self, who: str = "*", *, reason: str = "paused") -> None:
        """Stop claims of ``agent:ID``, ``role:ROLE`` or ``*`` (all); what they hold they may finish."""
        await self._store.command("HSET", self._keys.gates, _gate(who), reason or "paused")

    async def resume(self, who: str = "*") -> bool:
        """Open a gate again; False if it was open. Whoever waits claims again within a second."""
        return bool(await self._store.command("HDEL", self._keys.gates, _gate(who)))

    async def gates(self) -> dict[str, str]:
        """Every gate that is shut, and why."""
        rows = await self._store.command("HGETALL", self._keys.gates)
        return {name.decode(): gate_text(why.decode()) for name, why in _pairs(rows)}

    async def order(self, what: Order | str, who: str = "*") -> Sequence[str]:
        """Tell agents to leave. It is written down, so it reaches them with their next heartbeat at the latest; agents
        that come later are not meant.

        Args:
            what: ``drain``: claim no more, finish what is in hand, leave. ``shutdown``: the same within the grace, and
                hand back the rest.
            who: ``agent:ID``, ``role:ROLE`` or ``*`` (all).

        Returns:
            Who was told.
        """
        try:
            what = Order(what)
        except ValueError as error:
            raise InvalidInputError("order", found=what, needed=f"one of {', '.join(Order)}") from error
        kind, _, name = _gate(who).partition(":")
        rows, alive = await self._store.command("HGETALL", self._keys.agents), await self._alive()
        roles = {agent_id.decode(): str(orjson.loads(text).get("role", "")) for agent_id, text in _pairs(rows)}
        told = sorted(
            agent_id
            for agent_id, role in roles.items()
            if agent_id in alive and (who == "*" or name == (agent_id if kind == "agent" else role))
        )
        if told:
            args = [part for agent_id in told for part in (agent_id, str(what))]
            await self._store.command("HSET", self._keys.orders, *args)
        return told

    async def revoke(self, agent_id: str, *, agent: str = "", reason: str = "revoked") -> int:
        """Stop an agent for good and take its claims away: they are offered again, and whatever it writes is refused.

        Args:
            agent_id: whom.
            agent: who does it.
            reason: for the log.

        Returns:
            How many claims it lost.
        """
        check_id("agent id", agent_id)
        await self._store.command("HSET", self._keys.gates, f"agent:{agent_id}", "revoked")
        desk = self._blackboard.claims
        why = clean_text(" ".join(f"{reason} by {agent}".split() if agent else reason.split()), 300)
        endings = []
        for item in await self._blackboard.queries.by_agent(agent_id):
            claim = Claim(
                item_id=item.id,
                agent_id=agent_id,
                token=item.token,
                ends_at_ms=0,
                lease_s=0,
                lane=item.claimed_from,
                taken_at=0,
            )
            endings.append(
                desk.end(
                    Ending(
                        claim=claim, kind="revoke", to=claim.lane, quarantine=desk.quarantine_of(claim.lane), reason=why
                    )
                )
            )
        answers = await asyncio.gather(*endings, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, ClaimLostError):  # else it was quicker
                raise answer
        return sum(not isinstance(answer, BaseException) for answer in answers)


def _description(agent_id: str, role: str, facts: Mapping[str, Any]) -> bytes:
    facts = {"role": role, **facts}
    if "status" in facts:
        try:
            facts["status"] = AgentStatus(facts["status"]).value
        except ValueError as error:
            raise InvalidInputError(
                f"status of agent {agent_id!r}", found=facts["status"], needed=f"one of {', '.join(AgentStatus)}"
            ) from error
    for tag in facts.get("capabilities", ()):
        check_name("capability", tag)
    return dump_json(facts, f"description of agent {agent_id!r}")


def _pairs(rows: Mapping[bytes, bytes] | Sequence[Any]) -> Iterable[tuple[bytes, Any]]:
    """Pairs of a hash, or of a zset with scores, as redis-py gives them."""
    return rows.items() if isinstance(rows, Mapping) else [(row[0], row[1]) for row in rows]


def gate_text(gate: str) -> str:
    """A gate for people. What a budget shut is ``budget|scope|window|…`` (see ``70_money.lua``)."""
    if not gate.startswith("budget|"):
        return gate
    return f"budget of {gate.split('|')[1]} is spent"


def _gate(who: str) -> str:
    kind, _, name = who.partition(":")
    if who == "*":
        return who
    if kind == "agent":
        return f"agent:{check_id('agent id', name)}"
    if kind == "role":
        return f"role:{check_name('role', name)}"
    raise InvalidInputError("who", found=who, needed="'*', 'role:ROLE' or 'agent:ID'")
