"""What etcd and gRPC say when they refuse, in words that say what to do."""

from __future__ import annotations

import pytest

from metastore.coordination.troubles import trouble_of

SAID = (
    ("etcdserver: mvcc: database space exceeded", "alarm NOSPACE"),
    ("etcdserver: corrupt cluster", "alarm CORRUPT"),
    ("etcdserver: no leader", "a majority of etcd's members is down or cut off"),
    ("etcdserver: leader changed", "changes its leader"),
    ("etcdserver: request timed out, possibly due to previous leader failure", "look at its disks"),
    ("etcdserver: too many requests", "overloaded"),
    (
        "Ssl handshake failed: SSL_ERROR_SSL: error:1000007d:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED",
        "a certificate was refused",
    ),
    (
        "tls: failed to verify certificate: x509: certificate has expired or is not yet valid",
        "look at its dates",
    ),
    ("etcdserver: permission denied", "users and roles"),
    ("etcdserver: authentication failed, invalid user ID or password", "name or password"),
)


@pytest.mark.parametrize(("details", "told"), SAID)
def test_each_refusal_is_told_as_itself(details: str, told: str) -> None:
    assert told in trouble_of(details)
    assert details in trouble_of(details), "and in etcd's own words"


def test_what_is_not_known_is_no_trouble() -> None:
    assert trouble_of("Connection refused") == ""
