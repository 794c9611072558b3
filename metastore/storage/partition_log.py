"""Where in the log the entries of one partition are. Pure."""

from __future__ import annotations

from array import array

from metastore.core.logindex import LogIndex


class PartitionLog:
    """Where the entries of one partition are. ``index`` says which there are."""

    __slots__ = ("blobs", "index", "locations", "unset")

    def __init__(self, index: LogIndex | None = None) -> None:
        self.index = index or LogIndex()
        #: location of entry base_index + 1 + i: segment number << 32 | offset of its record
        self.locations = array("Q")
        #: recent entries' bytes, those without a location yet among them
        self.blobs: dict[int, bytes] = {}
        #: at recovery: the base is not known before the first entry
        self.unset = False

    def append(self, index: int, epoch: int, location: int) -> None:
        self.index.append(index, epoch)
        self.locations.append(location)

    def truncate(self, keep_index: int) -> None:
        keep = max(0, keep_index - self.index.base_index)
        for i in range(max(keep_index, self.index.base_index) + 1, self.index.last_index + 1):
            self.blobs.pop(i, None)
        self.index.truncate(keep_index)
        del self.locations[keep:]

    def compact(self, index: int) -> None:
        gone = index - self.index.base_index
        if gone > 0:
            for i in range(self.index.base_index + 1, index + 1):
                self.blobs.pop(i, None)
            self.index.compact(index)
            del self.locations[:gone]

    def reset(self, index: int, epoch: int) -> None:
        self.index.reset(index, epoch)
        self.locations = array("Q")
        self.blobs.clear()
        self.unset = False

    def last_in(self, segment: int, top: int) -> int:
        """The highest index up to ``top`` whose entry really lies in the segment of that number or before."""
        index = min(top, self.index.last_index)
        while index > self.index.base_index:
            location = self.locations[index - self.index.base_index - 1]
            if location and location >> 32 <= segment:
                break
            index -= 1
        return index
