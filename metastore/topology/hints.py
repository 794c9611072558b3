"""How far a replica's word is believed: epochs come from etcd, which hands out terms one by one, and within a term from
replicas that a quorum of its config has let go on. What etcd, or a whole table, has told is older than the
present by what it takes to ask around again (some seconds), in which a partition goes through a few terms: an election is
one, a move two to four, and elections that repeat are damped (R9). So a hint is believed up to MAX_TERMS_AHEAD terms
beyond that. One that is further ahead is nobody's epoch, or this table is so old that it has to be asked for anew,
which is what happens: no answer of a single node takes the table further away from what it can come back from.
"""

from __future__ import annotations

from typing import Final

from metastore.layout import term_of

#: how many terms beyond what etcd or a table told a hint may be
MAX_TERMS_AHEAD: Final = 64


def is_beyond(epoch: int, given: int) -> bool:
    """Whether an epoch is higher than is believed, where etcd or a table told ``given``."""
    return term_of(epoch) > term_of(given) + MAX_TERMS_AHEAD
