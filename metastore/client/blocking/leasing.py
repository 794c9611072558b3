"""A key that is held: taken by absence, kept by touching, watched while another has it.

Made from ``metastore/client/leasing.py`` by ``make fix``: change that, or ``tests/twins.py``."""

from __future__ import annotations

from metastore.client.blocking.bases import HeldBase
from metastore.client.leasing import (
    Callback,
)
from metastore.client.results import Fence
from metastore.history import FencingToken


class Held(HeldBase):
    """What locks and leaderships have in common: one hold of a key, its clock and its token."""

    # --- looking ----------------------------------------------------------------------------

    @property
    def held(self) -> bool:
        """Whether it was taken, not given back, and not lost."""
        return self._looks_held()

    @property
    def token(self) -> FencingToken:
        """The fencing token: greater than that of every earlier holder. Raises LockLost when not held at all
        (that of a lost hold may still be asked)."""
        return self._inner.token

    @property
    def fence(self) -> Fence:
        """For ``fence=`` of any write of the same namespace. In the partition that the lock's own key lives in
        (same folder, or same ``{tag}``) the write is refused (Fenced) from the moment on in which another
        takes the lock; in any other, once a later holder has written there with its fence. Raises LockLost."""
        return self._inner.fence

    @property
    def remaining_s(self) -> float:
        """Seconds until the lease ends if it is not renewed, on this process's clock, counted from when the
        last renewal was sent, less a margin; 0 when it is not held."""
        return self._inner.remaining_s

    def check(self) -> None:
        """Raises LockLost unless it is held now, by this process's clock. Cheap: asks nobody."""
        self._check()

    def on_at_risk(self, callback: Callback) -> None:
        """Call ``callback`` whenever the lease gets at risk. It runs in the client's thread: be short, and do
        not call the client."""
        self._inner.on_at_risk(callback)

    def on_lost(self, callback: Callback) -> None:
        """Call ``callback`` when the lease is lost. It runs in the client's thread: be short, and do not call
        the client."""
        self._inner.on_lost(callback)
