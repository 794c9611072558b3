"""The shape of one partition's log: which indexes it holds and their epochs. Pure.

Entries are contiguous. ``base`` is the position just before the first entry held: (0, 0) for a
log that holds everything, else the end of what compaction or a snapshot took away. Epochs
never fall along a log, so they are kept as runs.
"""

from __future__ import annotations

from bisect import bisect_right

Position = tuple[int, int]
"""``(epoch, index)``, ordered lexicographically (replication.md, State)."""


class LogIndex:
    """See the module. Positions are ``(epoch, index)``."""

    __slots__ = ("_epochs", "_firsts", "base_epoch", "base_index", "last_index")

    def __init__(self, base_epoch: int = 0, base_index: int = 0) -> None:
        self.base_epoch = base_epoch
        self.base_index = base_index
        self.last_index = base_index
        self._firsts: list[int] = []
        self._epochs: list[int] = []

    def copy(self) -> LogIndex:
        new = LogIndex(self.base_epoch, self.base_index)
        new.last_index = self.last_index
        new._firsts, new._epochs = self._firsts[:], self._epochs[:]
        return new

    def epoch_at(self, index: int) -> int:
        """The epoch of entry ``index``; of the base too. Raises IndexError outside."""
        if index == self.base_index:
            return self.base_epoch
        if not self.base_index < index <= self.last_index:
            raise IndexError(f"index {index} is not within {self.base_index} and {self.last_index}")
        if index >= self._firsts[-1]:  # of the last run, as most
            return self._epochs[-1]
        return self._epochs[bisect_right(self._firsts, index) - 1]

    def last_position(self) -> Position:
        return (self._epochs[-1] if self._epochs else self.base_epoch, self.last_index)

    def position_at_or_below(self, epoch: int, index: int) -> Position:
        """R5: the last position with index <= ``index`` and epoch <= ``epoch``; the base if there
        is none, whose epoch may then be above ``epoch``."""
        index = min(index, self.last_index)
        if index <= self.base_index:
            return self.base_epoch, self.base_index
        run = bisect_right(self._firsts, index) - 1
        while run >= 0 and self._epochs[run] > epoch:
            index = self._firsts[run] - 1
            run -= 1
        if run < 0:
            return self.base_epoch, self.base_index
        return self._epochs[run], index

    def append(self, index: int, epoch: int) -> None:
        """Raises AssertionError unless ``index`` follows on and epochs do not fall (I2)."""
        last_epoch = self._epochs[-1] if self._epochs else self.base_epoch
        if index != self.last_index + 1 or epoch < last_epoch:
            raise AssertionError(
                f"I2: entry {index} of epoch {epoch} does not follow {self.last_index} of {last_epoch}"
            )
        if not self._epochs or epoch != last_epoch:
            self._firsts.append(index)
            self._epochs.append(epoch)
        self.last_index = index

    def truncate(self, keep_index: int) -> None:
        """Drop every entry above ``keep_index``."""
        if keep_index < self.base_index:
            raise AssertionError(f"I4: truncation to {keep_index}, below the base {self.base_index}")
        self.last_index = min(self.last_index, keep_index)
        while self._firsts and self._firsts[-1] > self.last_index:
            self._firsts.pop()
            self._epochs.pop()

    def compact(self, index: int) -> None:
        """Forget entries up to ``index``, which becomes the base; beyond the end is an error."""
        if index <= self.base_index:
            return
        epoch = self.epoch_at(index)
        while len(self._firsts) > 1 and self._firsts[1] <= index + 1:
            del self._firsts[0], self._epochs[0]
        self.base_index, self.base_epoch = index, epoch
        if index == self.last_index:
            self._firsts, self._epochs = [], []
        elif self._firsts:
            self._firsts[0] = max(self._firsts[0], index + 1)

    def reset(self, index: int, epoch: int) -> None:
        """An empty log that begins after ``(epoch, index)`` (R17)."""
        self.base_index = self.last_index = index
        self.base_epoch = epoch
        self._firsts, self._epochs = [], []
