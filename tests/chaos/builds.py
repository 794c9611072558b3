"""Another build of a node, as a later version may be: a copy of the package with more in all that it says.

It speaks one version of the protocol more, tells another version of itself and a feature level more; its hello, its record
in etcd and every message to another node have a part that this build has never heard of, and it sends a kind of message that this
build does not know. So have its topology tables, whole and by change, and what it keeps of them in its store, where it has a kind of row more.
That shows what a later version may do. It says nothing of builds that are older than this tree: what these wrote is in
``tests/golden`` and ``tests/unit/node/test_stored_topology.py``. ``python -m tests.chaos.builds --data-dir DIR …`` runs a node: of that build if there is ``DIR.build``, which
names its folder.
"""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path
from typing import Final

LATER: Final = "99.0"
ROOT: Final = Path(__file__).parents[2]
#: file -> (what is there, what is there instead)
PATCHES: Final[dict[str, list[tuple[str, str]]]] = {
    "wire/versions.py": [
        ('return version("metastore")', f'return "{LATER}"'),
        ("return Spoken(1, 1, build())", "return Spoken(1, 2, build())"),
    ],
    "wire/peer_messages.py": [
        ("return [NUMBERS[type(message)], *message]", 'return [NUMBERS[type(message)], *message, "later"]'),
        (
            "list(mine.spoken), *levels]",
            '[*mine.spoken, "later"], [*mine.levels, "later"], {"later": 1}]',
        ),
    ],
    "node/peers.py": [
        ("        body: list[list[Any]] = []\n", '        body: list[list[Any]] = [[200, "later"]]\n'),
    ],
    "layout/records.py": [
        (
            "return orjson.dumps(asdict(record))",
            'return orjson.dumps(asdict(record) | {"later": {"x": [1]}})',
        ),
    ],
    "topology/plain.py": [
        (
            'plain: dict[str, Any] = {"cluster": cluster, "revision": revision}',
            'plain: dict[str, Any] = {"cluster": cluster, "revision": revision, "later": [1]}',
        ),
    ],
    "topology/placements.py": [
        (
            '        "stores": list(p.stores),\n',
            '        "stores": list(p.stores),\n        "later": {"x": 1},\n',
        ),
    ],
    "node/stored_topology.py": [
        (
            "{HEAD_ROW: msgpack.packb(table.head())}",
            '{HEAD_ROW: msgpack.packb(table.head()), b"later/x": msgpack.packb({"x": 1})}',
        ),
    ],
    "node/features.py": [("LEVEL: Final = FIRST_LEVEL", "LEVEL: Final = FIRST_LEVEL + 1")],
}


def make(folder: Path) -> Path:
    """The other build, in ``folder``."""
    if not folder.exists():
        shutil.copytree(
            ROOT / "metastore", folder / "metastore", ignore=shutil.ignore_patterns("__pycache__")
        )
        for name, patches in PATCHES.items():
            path = folder / "metastore" / name
            text = path.read_text()
            for old, new in patches:
                assert old in text, f"{name} has no {old!r} any more: mend tests/chaos/builds.py"
                text = text.replace(old, new)
            path.write_text(text)
    return folder


def main() -> None:
    chosen = Path(sys.argv[sys.argv.index("--data-dir") + 1] + ".build")
    if chosen.exists():
        sys.path.insert(0, chosen.read_text())
    runpy.run_module("tests.chaos.faulty_node", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
