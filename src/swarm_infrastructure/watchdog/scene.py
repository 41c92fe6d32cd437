"""The scene: what the watchdog has to know of a board before it can say why something stands still. Reads Redis only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..blackboard import Blackboard
from ..blackboard.clock import read_clock_ms
from ..blackboard.events import Event, read_entry
from ..blackboard.items import read_item
from ..blackboard.locks import lock_board_name
from ..blackboard.queries import QUEUE
from ..blackboard.registry import AgentState, AgentStatus
from ..blackboard.waits import Wait
from ..cost_manager.records import Paused
from ..errors import InvalidInputError
from ..failure_recovery.circuit_breaker import Breakers, BreakerState
from ..keys import BoardKeys

__all__ = ["Hindrance", "Scene", "duration", "grouped", "names_of", "newest_events", "read_scene"]

LOOK_BACK = 2000  # entries of the log: some seconds of a busy board, the whole life of a quiet one


@dataclass(frozen=True, slots=True, kw_only=True)
class Hindrance:
    """What keeps an agent from claiming."""

    kind: str  #: offline, revoked, budget, paused, leaving, busy; "" if nothing does
    why: str = ""
    paused: Paused | None = None  #: what a budget has to say


FREE = Hindrance(kind="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One board at one moment."""

    board: str
    now_ms: int
    agents: Sequence[AgentState]
    gates: Mapping[str, str]  #: ``*``, ``role:ROLE`` or ``agent:ID`` → why it is shut, as it stands in Redis
    orders: Mapping[str, str]
    waits: Sequence[Wait]
    breakers: Sequence[BreakerState]  #: those that let no call pass
    rates: Mapping[str, float]  #: what must not be called now → for how many seconds
    locks: Mapping[str, tuple[str, int]]  #: lock that somebody waits for → who holds it, with which token

    @property
    def is_queue(self) -> bool:
        """Whether this is a work queue, whose workers need not register."""
        return self.board.endswith(QUEUE)

    def lanes_of(self, agent: AgentState) -> tuple[str, ...] | None:
        """The lanes that an agent claims from; None if it does not say."""
        lanes = agent.facts.get("lanes")
        return tuple(map(str, lanes)) if isinstance(lanes, list) else None

    def able(self, lane: str) -> list[AgentState]:
        """Agents that claim from *lane*."""
        return [agent for agent in self.agents if lane in (self.lanes_of(agent) or ())]

    def silent(self) -> list[AgentState]:
        """Living agents that do not say what they claim."""
        return [
            agent for agent in self.agents if self.lanes_of(agent) is None and agent.status is not AgentStatus.OFFLINE
        ]

    def slots_of(self, agent_id: str) -> int:
        """Items that an agent works on at once; 1 if it does not say."""
        found = next((agent.facts.get("slots") for agent in self.agents if agent.agent_id == agent_id), None)
        return found if isinstance(found, int) and found > 0 else 1

    def hindrance(self, agent: AgentState) -> Hindrance:
        """What keeps *agent* from claiming."""
        name, role = f"agent:{agent.agent_id}", f"role:{agent.role}"
        if agent.status is AgentStatus.OFFLINE:
            return Hindrance(kind="offline", why=f"not heard of for {duration(agent.age_s)}")
        gate = self.gates.get(name) or self.gates.get(role) or self.gates.get("*") or ""
        if gate == "revoked":
            return Hindrance(kind="revoked", why="revoked")
        if gate.startswith("budget|"):
            told = Paused.read(name if name in self.gates else role, gate)
            if told is None or not 0 < told.resumes_at_ms <= self.now_ms:
                return Hindrance(kind="budget", why=str(told or gate), paused=told)
        elif gate:
            return Hindrance(kind="paused", why=gate)
        if order := self.orders.get(agent.agent_id):
            return Hindrance(kind="leaving", why=order)
        slots = agent.facts.get("slots")
        if isinstance(slots, int) and 0 < slots <= len(agent.current_items):
            return Hindrance(kind="busy", why=f"{len(agent.current_items)} of {slots} slots")
        return FREE

    def gate_of(self, agent: AgentState) -> str:
        """The word that opens the agent's gate: ``--all``, ``role:ROLE`` or its id."""
        if f"agent:{agent.agent_id}" in self.gates:
            return agent.agent_id
        return f"role:{agent.role}" if f"role:{agent.role}" in self.gates else "--all"


async def read_scene(blackboard: Blackboard) -> Scene:
    """What there is to know of a board now."""
    store, keys = blackboard.store, blackboard.keys
    agents, waits = await blackboard.agents.list(), await blackboard.waits.list()
    gates, orders, rates = await store.commands(
        ("HGETALL", keys.gates), ("HGETALL", keys.orders), ("HGETALL", keys.rates)
    )
    now_ms = await read_clock_ms(store, keys)
    offline = {agent.agent_id for agent in agents if agent.status is AgentStatus.OFFLINE}
    waits = [wait for wait in waits if wait.agent_id not in offline]
    return Scene(
        board=blackboard.board.name,
        now_ms=now_ms,
        agents=agents,
        gates={name.decode(): why.decode() for name, why in gates.items()},
        orders={name.decode(): what.decode() for name, what in orders.items()},
        waits=waits,
        breakers=[breaker for breaker in await Breakers(store, keys).states() if not breaker.passes],
        rates=_to_wait(rates, now_ms),
        locks=await _holders(blackboard, [wait.name for wait in waits if wait.kind == "lock"]),
    )


async def _holders(blackboard: Blackboard, locks: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Who holds these locks; those that are free are left out."""
    if not locks:
        return {}
    keys = BoardKeys(blackboard.namespace, lock_board_name(blackboard.board.name))
    records = await blackboard.store.command("HMGET", keys.items, *locks)
    found: dict[str, tuple[str, int]] = {}
    for name, record in zip(locks, records, strict=True):
        if record is None:
            continue
        try:
            item = read_item(name, record, None)
        except InvalidInputError:
            continue  # torn: `swarm audit` names it
        if item.holder:
            found[name] = (item.holder, item.token)
    return found


def _to_wait(rates: Mapping[bytes, bytes], now_ms: int) -> dict[str, float]:
    """See ``75_rates.lua``: a rate's last number is until when nobody may call."""
    found: dict[str, float] = {}
    for name, text in rates.items():
        until_ms = int(text.rpartition(b" ")[2] or 0)
        if until_ms > now_ms:
            found[name.decode()] = (until_ms - now_ms) / 1000
    return found


async def newest_events(blackboard: Blackboard, most: int = LOOK_BACK) -> list[Event]:
    """Events of the newest *most* entries of the log, newest first; what can't be read is left to `swarm audit`."""
    entries = await blackboard.store.command("XREVRANGE", blackboard.keys.events, "+", "-", "COUNT", most)
    events: list[Event] = []
    for entry_id, fields in entries:
        try:
            events += list(read_entry(entry_id, fields))[::-1]
        except InvalidInputError:
            continue
    return events


def names_of(agents: Iterable[AgentState], most: int = 3) -> str:
    """The first few of them: ``a, b, c and 4 more``."""
    ids = [agent.agent_id for agent in agents]
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")


def grouped(scene: Scene, agents: Iterable[AgentState]) -> dict[str, list[tuple[AgentState, Hindrance]]]:
    """Agents by what keeps them from claiming; "" for those that nothing keeps."""
    groups: dict[str, list[tuple[AgentState, Hindrance]]] = defaultdict(list)
    for agent in agents:
        found = scene.hindrance(agent)
        groups[found.kind].append((agent, found))
    return dict(groups)


def duration(seconds: float) -> str:
    """For people: ``4 s``, ``12 min``, ``5 h``, ``3 d``; tenths below ten seconds."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if 0.05 <= seconds < 10 else f"{max(seconds, 0):.0f} s"
