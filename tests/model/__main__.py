"""``python -m tests.model [subject…] [name…]``: explore, the deeper bounds too. See suite."""

from __future__ import annotations

import sys

from tests.model import test_model, test_moves, test_small, test_snapshots, test_splits

SUITES = (test_model.SUITE, test_splits.SUITE, test_snapshots.SUITE, test_moves.SUITE, *test_small.SUITES)


def main(wanted: list[str]) -> None:
    known = {name for suite in SUITES for name in (suite.subject, *suite.names())}
    for name in wanted:
        if name not in known:
            sys.exit(f"{name!r} is neither a subject, nor bounds, nor a mutation: {', '.join(sorted(known))}")
    for suite in SUITES:
        names = [name for name in wanted if name in suite.names()]
        if names or not wanted or suite.subject in wanted:
            suite.show(names)


if __name__ == "__main__":
    main(sys.argv[1:])
