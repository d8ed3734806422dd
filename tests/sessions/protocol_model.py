"""The ownership protocol as a small state machine, and a search through all that can happen to it.

Two replicas, one session, one client. Nothing here runs the service: it is the protocol of
`service.sessions.stores.protocol` on one page, so that every order of events can be tried.

What is left to chance, and so tried in every order:

- a request that was sent once reaches either replica, late, twice, out of order, or never;
- a commit is executed by the store at any later time, or never; its result reaches the replica or does not;
- a claim is executed, and its image is lost on the way back;
- an owner lets go of its session whenever it is at rest (a handover asks it to; so do idle times);
- a lease runs out at the store at any time after it ran out by the replica's own count;
- a replica dies, and comes back empty. One that is paused is one to which nothing happens for a while.

The store is one of two. REDIS: a commit is checked against token, epoch and next step. SQLITE: a commit is
checked only against the fence, a session leaves a living owner by its own release alone, and what one
replica asks of the store is done in the order it was asked.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


class Kind(enum.Enum):
    """Which store."""

    REDIS = "commit checks token, epoch and next step"
    SQLITE = "commit checks the fence; only a release takes a session from the living"


class Guard(enum.Enum):
    """A part of the protocol that can be left out, to see that it is needed."""

    FENCE = "a commit is taken only from the owner that made the newest claim"
    NEXT_STEP = "a commit is taken only at the next step"
    RELOAD = "a session whose commit was not answered is read again before it goes on"
    WINDOW = "a step that was committed is answered from memory, not executed"
    LEASE = "what memory alone says is said only while the lease holds"
    CLOCK = "a replica's lease runs out by its own count before it does at the store"
    ORDER = "what a replica asks of the store is done in the order it was asked (SQLITE)"


@dataclass(frozen=True, slots=True)
class World:
    """What there is. Replicas may join, claim, stall and die as often as they like."""

    kind: Kind
    without: frozenset[Guard] = field(default_factory=frozenset)
    steps: int = 2
    commits: int = 2  # on their way at a time; the whole protocol needs no such bound
    strays: int = 0  # requests with other inputs, by somebody who uses the same session
    reopens: int = 0  # the client ends the session and opens it again under its name

    def holds(self, guard: Guard) -> bool:
        return guard not in self.without


class Request(NamedTuple):
    """One step of the client: in which of its sequences, which step, with which inputs."""

    sequence: int
    step: int
    inputs: int


class Commit(NamedTuple):
    """A commit on its way to the store. newest: it names the epoch of the newest claim."""

    token: int
    newest: bool
    step: int
    request: Request


class Log(NamedTuple):
    """A session's past: in which opening of its name, and the requests that made it, oldest first."""

    opening: int
    requests: tuple[Request, ...]


class Busy(NamedTuple):
    """A request that was computed and sent to be committed. result: what the store said, not yet read."""

    request: Request
    commit: Commit
    result: str  # "", done, stale, fenced


class Memory(NamedTuple):
    """The session as a replica has it. newest: by the newest claim."""

    newest: bool
    log: Log


class Replica(NamedTuple):
    """token: 0 before it joined. lease: it holds by the replica's own count."""

    token: int = 0
    lease: bool = False
    memory: Memory | None = None
    busy: Busy | None = None


class State(NamedTuple):
    """Everything. members: tokens that are not fenced, and whether their lease holds by the store's clock.

    Epochs are only ever compared with the newest, so they are kept as whether they are it.
    """

    log: Log = Log(0, ())
    open: bool = False
    owner: int = 0
    members: frozenset[tuple[int, bool]] = frozenset()
    replicas: tuple[Replica, Replica] = (Replica(), Replica())
    commits: tuple[Commit, ...] = ()  # on their way; the same one may be there twice
    releases: frozenset[tuple[int, bool]] = frozenset()  # on their way: token, newest
    sent: frozenset[Request] = frozenset()
    sequence: int = 0  # of the client
    acknowledged: int = 0  # steps of this sequence that the client had a reply to
    strays: int = 0


class Violation(Exception):
    """The protocol did what it must not do; the message says what."""


Event = tuple[str, State]


class Model:
    """All that can happen next, in a world. Raises Violation where it must not."""

    def __init__(self, world: World) -> None:
        self.world = world

    def events(self, s: State) -> Iterator[Event]:
        yield from self._client(s)
        yield from self._store(s)
        for r, replica in enumerate(s.replicas):
            yield from self._life(s, r, replica)
            if replica.token and replica.busy:
                yield from self._result(s, r, replica, replica.busy)
            elif replica.token and replica.memory:
                yield from self._resident(s, r, replica, replica.memory)
            elif replica.token and s.sent:
                yield from self._claim(s, r, replica)

    def settled(self, s: State) -> State:
        """The same state in its simplest form: what can have no effect any more is done or dropped, and the
        two replicas, which are alike, are told apart by their tokens alone."""
        if self.world.holds(Guard.FENCE):
            # The store says no to these now and for ever, so it may as well say it at once.
            for commit in s.commits:
                result = self._verdict(s, commit)
                if result != "done" and not (self.world.kind is Kind.SQLITE and result == "stale"):
                    s = self._told(s, commit, result)
        ours = {r.token for r in s.replicas} | {s.owner} | {c.token for c in s.commits}
        releases = frozenset(
            (t, n) for t, n in s.releases if t == s.owner and (n or self.world.kind is Kind.SQLITE)
        )
        members = frozenset((t, holds) for t, holds in s.members if t in ours)
        first, second = s.replicas
        if second.token < first.token:
            first, second = second, first
        return s._replace(releases=releases, members=members, replicas=(first, second))

    # The client: sends step n until it has the reply, then n + 1.

    def _client(self, s: State) -> Iterator[Event]:
        step = Request(s.sequence, s.acknowledged, 0)
        if step.step < self.world.steps and step not in s.sent:
            yield f"client sends {step.step}", s._replace(sent=s.sent | {step})
        if s.strays < self.world.strays and step.step < self.world.steps:
            stray = step._replace(inputs=1)
            if stray not in s.sent:
                yield (
                    f"somebody sends another {step.step}",
                    s._replace(sent=s.sent | {stray}, strays=s.strays + 1),
                )

    def _reply(self, s: State, request: Request, log: Log) -> Iterator[Event]:
        """The reply to a request that log has: it reaches the client, or it does not."""
        about = f"reply to {request.step}"
        if request.sequence != s.sequence:
            return  # to a connection that nobody listens to any more
        if (
            log.opening != s.log.opening
            or s.log.requests[: request.step + 1] != log.requests[: request.step + 1]
        ):
            raise Violation(f"{about} is not of a committed step")
        yield f"{about} is lost", s
        if request.inputs == 0 and request.step == s.acknowledged:
            yield f"{about} arrives", s._replace(acknowledged=s.acknowledged + 1)

    # The store.

    def _store(self, s: State) -> Iterator[Event]:
        for n, commit in enumerate(s.commits):
            if n and s.commits[n - 1] == commit:
                continue
            result = self._verdict(s, commit)
            after = self._told(s, commit, result)
            if result == "done":
                after = after._replace(log=self._appended(s, commit))
            yield f"store: commit of step {commit.step} by {commit.token} is {result}", after
            if self.world.kind is Kind.SQLITE:  # which it would hold up otherwise
                yield "a commit never arrives", s._replace(commits=_less(s.commits, commit))
        for token, newest in s.releases:
            if self._in_order and any(c.token == token for c in s.commits):
                continue
            ours = s.owner == token and (self.world.kind is Kind.SQLITE or newest)
            yield (
                f"store: release by {token}",
                s._replace(owner=0 if ours else s.owner, releases=s.releases - {(token, newest)}),
            )
        for token, holds in s.members:
            by_replica = any(r.token == token and r.lease for r in s.replicas)
            if holds and not (by_replica and self.world.holds(Guard.CLOCK)):
                yield (
                    f"store: lease of {token} runs out",
                    s._replace(members=s.members - {(token, True)} | {(token, False)}),
                )

    def _verdict(self, s: State, commit: Commit) -> str:
        """What the store says to a commit."""
        if self.world.holds(Guard.FENCE):
            if not any(token == commit.token for token, _ in s.members):
                return "fenced"
            if self.world.kind is Kind.REDIS and not (commit.newest and s.owner == commit.token):
                return "stale"
        checked = self.world.kind is Kind.REDIS and self.world.holds(Guard.NEXT_STEP)
        if not s.open or (checked and len(s.log.requests) != commit.step):
            return "stale"
        return "done"

    def _appended(self, s: State, commit: Commit) -> Log:
        position = len(s.log.requests)
        if commit.request.step != position:
            raise Violation(f"step {commit.request.step} is executed as step {position}")
        if commit.step != position:
            raise Violation(f"step {position} is computed from the state before step {commit.step}")
        return s.log._replace(requests=(*s.log.requests, commit.request))

    def _told(self, s: State, commit: Commit, result: str) -> State:
        """The store has decided on a commit; the replica that waits for it, if it does still, may hear it."""
        first, second = (
            r._replace(busy=r.busy._replace(result=result))
            if r.busy and r.busy.commit == commit and not r.busy.result
            else r
            for r in s.replicas
        )
        return s._replace(commits=_less(s.commits, commit), replicas=(first, second))

    @property
    def _in_order(self) -> bool:
        return self.world.kind is Kind.SQLITE and self.world.holds(Guard.ORDER)

    def _behind(self, s: State, token: int) -> bool:
        """Something that this replica asked earlier is still before a store that takes all in order."""
        asked = {commit.token for commit in s.commits} | {token for token, _ in s.releases}
        return self._in_order and token in asked

    # A replica.

    def _life(self, s: State, r: int, replica: Replica) -> Iterator[Event]:
        token = replica.token
        if not token:
            new = min({1, 2, 3, 4, 5, 6} - _tokens(s))
            joined = s._replace(members=s.members | {(new, True)})
            yield f"a replica joins as {new}", _with(joined, r, Replica(new, lease=True))
            return
        if replica.lease:
            yield f"{token}: lease runs out by its own count", _with(s, r, replica._replace(lease=False))
        elif not any(t == token for t, _ in s.members):
            yield f"{token} renews: fenced", _with(s, r, Replica())
        else:
            renewed = s._replace(members=s.members - {(token, False)} | {(token, True)})
            yield f"{token} renews", _with(renewed, r, replica._replace(lease=True))
        yield f"{token} dies", _with(s, r, Replica())

    def _claim(self, s: State, r: int, replica: Replica) -> Iterator[Event]:
        token, leases = replica.token, dict(s.members)
        if self._behind(s, token):
            return
        if token not in leases:
            yield f"{token} claims: fenced", _with(s, r, Replica())
            return
        if s.owner not in (0, token) and leases.get(s.owner):
            return  # elsewhere: the owner is asked to let go, which it may do at any time
        if not s.open and s.acknowledged:
            raise Violation("a session that acknowledged a step is absent")
        fenced = s.members if s.owner in (0, token) else s.members - {(s.owner, False)}
        claimed = _older(s)._replace(owner=token, members=fenced, open=True)
        yield f"{token} claims", _with(claimed, r, replica._replace(memory=Memory(True, s.log)))
        yield f"{token} claims, and does not hear of it", claimed

    def _resident(self, s: State, r: int, replica: Replica, memory: Memory) -> Iterator[Event]:
        release = (replica.token, memory.newest)
        yield (
            f"{replica.token} lets go",
            _with(s._replace(releases=s.releases | {release}), r, replica._replace(memory=None)),
        )
        for request in s.sent:
            yield from self._request(s, r, replica, memory, request)
        if self.world.reopens > s.sequence and s.acknowledged == self.world.steps:
            yield from self._end(s, r, replica, memory)

    def _request(
        self, s: State, r: int, replica: Replica, memory: Memory, request: Request
    ) -> Iterator[Event]:
        next_step = len(memory.log.requests)
        if request.step < next_step and self.world.holds(Guard.WINDOW):
            if replica.lease or not self.world.holds(Guard.LEASE):
                same = memory.log.requests[request.step].inputs == request.inputs
                for what, after in self._reply(s, request, memory.log) if same else ():
                    yield f"{replica.token}, from memory: {what}", after
        elif request.step > next_step:
            may_speak = replica.lease or not self.world.holds(Guard.LEASE)
            if may_speak and request.sequence == s.sequence:
                raise Violation(f"{replica.token} refuses step {request.step}, and expects {next_step} again")
        elif len(s.commits) < self.world.commits:
            commit = Commit(replica.token, memory.newest, next_step, request)
            sent = s._replace(commits=tuple(sorted((*s.commits, commit))))
            yield (
                f"{replica.token} computes {request.step} and sends its commit",
                _with(sent, r, replica._replace(busy=Busy(request, commit, ""))),
            )

    def _result(self, s: State, r: int, replica: Replica, busy: Busy) -> Iterator[Event]:
        memory = replica.memory
        if memory is None:
            raise AssertionError("a replica commits what it does not have")
        idle = replica._replace(busy=None)
        away = idle._replace(memory=None) if self.world.holds(Guard.RELOAD) else idle
        yield f"{replica.token}: store away", _with(s, r, away)
        if busy.result == "done":
            log = memory.log._replace(requests=(*memory.log.requests, busy.request))
            after = _with(s, r, idle._replace(memory=memory._replace(log=log)))
            yield f"{replica.token} is done with {busy.request.step}", after
            for what, replied in self._reply(after, busy.request, log):
                yield f"{replica.token} is done: {what}", replied
        elif busy.result == "stale":
            yield f"{replica.token}: stale", _with(s, r, idle._replace(memory=None))
        elif busy.result == "fenced":
            yield f"{replica.token}: fenced", _with(s, r, Replica())

    def _end(self, s: State, r: int, replica: Replica, memory: Memory) -> Iterator[Event]:
        owned = s.owner == replica.token and memory.newest
        if not owned or replica.token not in dict(s.members) or self._behind(s, replica.token):
            return
        ended = s._replace(
            log=Log(s.log.opening + 1, ()), open=False, owner=0, sequence=s.sequence + 1, acknowledged=0
        )
        yield f"{replica.token} ends the session", _with(ended, r, replica._replace(memory=None))


def _less(commits: tuple[Commit, ...], commit: Commit) -> tuple[Commit, ...]:
    at = commits.index(commit)
    return commits[:at] + commits[at + 1 :]


def _tokens(s: State) -> set[int]:
    """All that are named anywhere: a new one must be none of them."""
    named = {s.owner, *(r.token for r in s.replicas), *(c.token for c in s.commits)}
    return named | {token for token, _ in s.members} | {token for token, _ in s.releases}


def _older(s: State) -> State:
    """There is a newer claim than all there were."""
    replicas = []
    for r in s.replicas:
        memory = r.memory and r.memory._replace(newest=False)
        busy = r.busy and r.busy._replace(commit=r.busy.commit._replace(newest=False))
        replicas.append(r._replace(memory=memory, busy=busy))
    return s._replace(
        replicas=(replicas[0], replicas[1]),
        commits=tuple(sorted(c._replace(newest=False) for c in s.commits)),
        releases=frozenset((token, False) for token, _ in s.releases),
    )


def _with(s: State, r: int, replica: Replica) -> State:
    return s._replace(replicas=(replica, s.replicas[1]) if r == 0 else (s.replicas[0], replica))


def check(before: State, after: State) -> None:
    """What holds whatever happens. Raises Violation.

    The rest is checked where a reply or a commit is made.
    """
    if after.log.opening != before.log.opening:
        return  # ended by its client
    if after.log.requests[: len(before.log.requests)] != before.log.requests:
        raise Violation("what was committed changed")
    if len(after.log.requests) < after.acknowledged:
        raise Violation("an acknowledged step is lost")


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found. states: how many there are. violation: the first, with the way to it."""

    states: int
    committed: int  # most steps that were committed in one of them
    acknowledged: int
    violation: str = ""
    way: tuple[str, ...] = ()


def search(world: World) -> Found:
    """All states, nearest first; ends at the first violation."""
    model = Model(world)
    start = State()
    came: dict[State, tuple[State, str] | None] = {start: None}
    queue = deque([start])
    committed = acknowledged = 0
    while queue:
        s = queue.popleft()
        committed = max(committed, len(s.log.requests))
        acknowledged = max(acknowledged, s.acknowledged)
        name = ""
        try:
            for name, raw in model.events(s):
                after = model.settled(raw)
                if after in came:
                    continue
                check(s, after)
                came[after] = (s, name)
                queue.append(after)
        except Violation as error:
            return Found(len(came), committed, acknowledged, str(error), _way(came, s))
    return Found(len(came), committed, acknowledged)


def _way(came: dict[State, tuple[State, str] | None], state: State) -> tuple[str, ...]:
    way = []
    while (link := came[state]) is not None:
        state, name = link
        way.append(name)
    return tuple(reversed(way))
