"""A new owner takes over the highest log of its sealing quorum before it appends anything (R3). Pure.

One of the parts that a replica has. What it is doing just now stands in the term (``pull_from``, ``pull_target``,
``pull_sent_ns``), so it goes with the term.
"""

from __future__ import annotations

from collections.abc import Callable

from metastore.core import messages as m
from metastore.core.entry import check_entries
from metastore.core.messages import Process
from metastore.core.replica import ADOPTING, SEALING, Replica
from metastore.core.term import Term
from metastore.errors import ProtocolError


class Adoption:
    """See the module. ``done``: called when the log here is the one to go on from."""

    __slots__ = ("_done", "_replica")

    def __init__(self, replica: Replica, done: Callable[[int, Term], None]) -> None:
        self._replica, self._done = replica, done

    def begin(self, now: int, term: Term) -> None:
        """A quorum has sealed the epoch."""
        replica, best = self._replica, term.best_answer()
        if best == replica.ctx.me.node:
            self._done(now, term)
            return
        answer = term.answers[best]
        term.pull_from, term.pull_target = best, (answer.last_epoch, answer.last_index)
        replica.set_role(ADOPTING, f"pulls the log of {best}")
        self._pull(now, term, *term.pull_target)

    def _pull(self, now: int, term: Term, epoch: int, index: int) -> None:
        """Ask for what follows our last position at or below the given one, which is never below what is committed."""
        replica = self._replica
        assert term.pull_from is not None
        position = replica.log.position_at_or_below(epoch, index)
        floor = max(replica.commit_index, replica.log.base_index)
        if position[1] < floor:
            position = replica.log.epoch_at(floor), floor
        term.pull_sent_ns = now
        replica.send(term.pull_from, m.Pull(replica.p, term.epoch, *position), durable=True)

    def _is_under_way(self, term: Term, src: Process) -> bool:
        replica = self._replica
        return replica.role == ADOPTING and src.node == term.pull_from and not replica.installing

    def on_pulled(self, now: int, term: Term, src: Process, msg: m.Pulled) -> None:
        """Raises ProtocolError when the entries are not valid."""
        replica, log = self._replica, self._replica.log
        if not self._is_under_way(term, src):
            return
        if not (log.base_index <= msg.prev_index <= log.last_index):
            return
        if log.epoch_at(msg.prev_index) != msg.prev_epoch:
            return
        target_epoch, target_index = term.pull_target
        read = replica.ctx.read_payload
        try:
            checked = check_entries(msg.entries, msg.prev_index + 1, msg.prev_epoch, target_epoch, read)
            if msg.prev_index + len(checked) > target_index:
                raise ValueError(f"more than the log that ended at {target_index}")
        except ValueError as e:
            raise ProtocolError(f"partition {replica.p}: entries pulled from {src.node}: {e}") from None
        replica.store_entries(msg.entries, checked, replica.commit_index)
        if log.last_position() == term.pull_target:
            self._done(now, term)
        elif msg.entries:
            self._pull(now, term, *term.pull_target)

    def on_pull_missed(self, now: int, term: Term, src: Process, msg: m.PullMissed) -> None:
        if self._is_under_way(term, src):
            self._pull(now, term, msg.hint_epoch, msg.hint_index)

    def tick(self, now: int, term: Term) -> None:
        replica = self._replica
        if replica.installing:
            return
        if replica.log.last_position() == term.pull_target:
            self._done(now, term)
        elif term.pull_from in replica.ctx.down:
            self.stop(term)
            if term.sealed_quorum():
                self.begin(now, term)
        elif now - term.pull_sent_ns >= replica.ctx.settings.retry_ns:
            self._pull(now, term, *term.pull_target)

    def stop(self, term: Term) -> None:
        """The replica whose log was to be adopted is gone, or does not have it any more (R14). The others may be a quorum
        without it. What was pulled is in this log now: the owner's answer says so."""
        replica = self._replica
        assert term.pull_from is not None
        del term.answers[term.pull_from]
        term.progress[term.pull_from].sealed = False
        own = term.answers[replica.ctx.me.node]
        last_epoch, last_index = replica.log.last_position()
        term.answers[replica.ctx.me.node] = own._replace(last_epoch=last_epoch, last_index=last_index)
        term.pull_from = None
        replica.set_role(SEALING, "the replica it pulled from is gone")
