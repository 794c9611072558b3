"""A store is set aside whole; what is interrupted leaves nothing that a node would take for its store."""

from __future__ import annotations

from pathlib import Path

import pytest

from metastore.errors import ConfigError, CorruptLog
from metastore.storage.discarding import ASIDE, PARTS, discard
from metastore.storage.store import Store


def made(folder: Path) -> str:
    store = Store.open(folder, cluster="c", node="n")
    store.raise_generation("1")
    store.abandon()
    return store.store_id


def test_it_is_set_aside_whole_and_the_node_begins_anew(tmp_path: Path) -> None:
    old = made(tmp_path)
    aside = discard(tmp_path, cluster="c", node="n")
    assert aside.parent == tmp_path / ASIDE
    assert {p.name for p in aside.iterdir()} == set(PARTS)
    store = Store.open(tmp_path, cluster="c", node="n")
    assert store.created
    assert store.store_id != old
    assert store.lineage.generation == 0
    store.abandon()
    assert discard(tmp_path, cluster="c", node="n") != aside, "each has a folder of its own"


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no store"):
        discard(tmp_path, cluster="c", node="n")
    store = Store.open(tmp_path, cluster="c", node="n")
    with pytest.raises(ConfigError, match="in use by process"):
        discard(tmp_path, cluster="c", node="n")
    store.abandon()
    with pytest.raises(ConfigError, match="belongs to node 'n'"):
        discard(tmp_path, cluster="c", node="other")
    assert (tmp_path / "store.json").exists()


@pytest.mark.parametrize("after", range(1, len(PARTS)))
def test_interrupted_anywhere_it_is_simply_run_again(
    tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path)
    left = after
    rename = Path.rename

    def dies(self: Path, to: Path) -> Path:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        return rename(self, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dies)
        with pytest.raises(KeyboardInterrupt):
            discard(tmp_path, cluster="c", node="n")
    with pytest.raises(CorruptLog):
        Store.open(tmp_path, cluster="c", node="n")
    discard(tmp_path, cluster="c", node="n")
    store = Store.open(tmp_path, cluster="c", node="n")
    assert store.created
    assert not store.partitions
    store.abandon()
