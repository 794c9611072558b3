"""Addresses of TCP ports, ``host:port`` or ``[IPv6]:port``, and names of things. Pure.

An address that is written down by hand is checked when a process starts, and what is wrong with it is told with the
fix. One that others are to connect to (advertised) has to name a machine; one to listen on may say "all of them".
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

#: what stands for all addresses of a machine, which is nothing to connect to
ANY: Final = frozenset({"0.0.0.0", "::"})
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
_HOST: Final = re.compile(r"[A-Za-z0-9_.%-]{1,253}\Z")


def split_address(address: str) -> tuple[str, int]:
    """``(host, port)`` of an address that was checked; an IPv6 host without its brackets."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def check_address(address: str, *, to_listen: bool = False, listen_by: str = "a setting of its own") -> None:
    """Raises ValueError with what is wrong with ``address``, and what it should be. ``to_listen``: it may be that of all
    interfaces, which no process can connect to; else the message names ``listen_by`` as the setting for
    listening on all interfaces."""
    if not address:
        raise ValueError("is empty: give host:port, such as 10.0.0.11:7400")
    scheme, found, rest = address.partition("://")
    if found:
        raise ValueError(f"is a URL ({scheme}); give host:port only: {rest.split('/')[0] or 'host:port'}")
    if "/" in address:
        raise ValueError(f"has a path; give host:port only: {address.split('/')[0]}")
    if any(c.isspace() or not c.isprintable() for c in address):
        raise ValueError("has blanks or control characters; give host:port")
    host, colon, port = address.rpartition(":")
    if _is_ipv6(address) or (":" in host and not host.startswith("[")):
        inside = host if _is_ipv6(host) else address
        raise ValueError(f"is IPv6 without brackets: write [{inside}]:{port if inside == host else 'PORT'}")
    if not colon or not host:
        raise ValueError(f"is not host:port; {'the host' if colon else 'the port'} is missing")
    if not port.isascii() or not port.isdigit() or not 0 < int(port[:9]) < 65536:
        raise ValueError(f"is not host:port; its port, {port!r:.20}, is not a number from 1 to 65535")
    if host.startswith("["):
        host = host[1:-1]
        if not _is_ipv6(host):
            raise ValueError(
                f"has {host!r:.60} in brackets, which is not an IPv6 address; brackets are for IPv6"
            )
    elif not _HOST.match(host):
        raise ValueError(f"has the host {host!r:.60}; give a name or an IP address")
    if host in ANY and not to_listen:
        raise ValueError(
            "is the address of all interfaces, to which no process can connect; give the one by which others reach this "
            f"machine here, and listen on all of them by {listen_by}"
        )


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def check_name(name: str) -> None:
    """Raises ValueError when ``name`` cannot be that of a cluster, a cell or a node: it is part of keys, files and tables."""
    if not _NAME.match(name):
        raise ValueError(
            "is not a valid name: use 1 to 63 of a-z A-Z 0-9 . _ - and begin with a letter or digit"
        )
