"""What a simulation raises."""


class Violation(AssertionError):
    """A promise was broken; the message says which. ``p``: in which partition, if in one."""

    def __init__(self, message: str, p: int | None = None) -> None:
        super().__init__(message)
        self.p = p


class Stopped(Exception):
    """So many events have happened, as asked."""
