"""Quorums of a config: a majority of ``replicas``, and of ``joint`` while there is one. Pure.

A leader uses the quorums of the config that made its own epoch, whatever change is in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Container

from metastore.layout import ConfigRecord, Member


def _majority(members: tuple[Member, ...], having: Container[str]) -> bool:
    return 2 * sum(1 for node, _ in members if node in having) > len(members)


def is_quorum(config: ConfigRecord, having: Container[str]) -> bool:
    """Whether the nodes in ``having`` are a quorum of ``config``."""
    if not _majority(config.replicas, having):
        return False
    return config.joint is None or _majority(config.joint, having)


def quorum_value(config: ConfigRecord, value_of: Callable[[str], int]) -> int:
    """The largest ``v`` such that a quorum has values of at least ``v`` (match indexes, times)."""

    low = majority_value([value_of(node) for node, _ in config.replicas])
    if config.joint is None:
        return low
    return min(low, majority_value([value_of(node) for node, _ in config.joint]))


def majority_value(values: list[int]) -> int:
    """The largest ``v`` such that a majority of ``values`` is at least ``v``."""
    if len(values) == 3:  # nearly always; and this is asked at every acknowledgement
        a, b, c = values
        if a > b:
            a, b = b, a
        return a if c <= a else c if c < b else b
    return sorted(values, reverse=True)[len(values) // 2]
