"""Every engine is held to the interface (``metastore/storage/engine.py``): the same cases, and histories made by hypothesis."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metastore.errors import NoRoom, StorageError
from metastore.storage.engine import MAX_KEY_BYTES, Engine, Row, Slice, Snapshot
from metastore.storage.lmdb_engine import LmdbEngine, LmdbSnapshot
from metastore.storage.memory_engine import MemoryEngine

TABLES = ("data", "aux", "meta")
MIB = 1 << 20


class Kept:
    """Where an engine's rows outlive its process."""

    def __init__(self, folder: Path, limit: int = 64 * MIB) -> None:
        self.folder, self.limit = folder, limit

    def open(self) -> Engine:
        raise NotImplementedError

    def ready(self) -> Engine:
        engine = self.open()
        for name in TABLES:
            assert engine.open_table(name, create=True)
        engine.sync()
        return engine


class InLmdb(Kept):
    def open(self) -> Engine:
        return LmdbEngine.open(self.folder, self.limit)


class InMemory(Kept):
    engine: MemoryEngine | None = None

    def open(self) -> Engine:
        if self.engine is None:
            self.engine = MemoryEngine(self.limit)
        return self.engine


KINDS: list[type[Kept]] = [InLmdb, InMemory]


@pytest.fixture(params=KINDS)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    made: Kept = request.param(tmp_path)
    return made


@pytest.fixture
def engine(kept: Kept) -> Iterator[Engine]:
    engine = kept.ready()
    yield engine
    engine.close()


def put(engine: Engine, *rows: Row, table: str = "data") -> None:
    engine.write([Slice(table, rows)])


def rows_of(engine: Engine, table: str = "data") -> list[Row]:
    with engine.snapshot() as snapshot:
        return list(snapshot.table(table).seek(b"")[1])


def as_bytes(row: Row | None) -> Row | None:
    return None if row is None else (bytes(row[0]), bytes(row[1]))


# --- reading ------------------------------------------------------------------------------------------


def test_an_empty_table(engine: Engine) -> None:
    with engine.snapshot() as snapshot:
        table = snapshot.table("data")
        assert table.get(b"k") is None
        assert table.around(b"k") == (None, None)
        for key in (b"", b"k"):
            before, rows = table.seek(key)
            assert (before, list(rows)) == (None, [])


def test_rows_come_in_the_order_of_their_keys(engine: Engine) -> None:
    keys = [b"\0", b"a", b"a\0", b"ab", b"b", b"\xff", b"\xff" * MAX_KEY_BYTES]
    put(engine, *((key, b"of-" + key[:3]) for key in reversed(keys)))
    assert [key for key, _ in rows_of(engine)] == keys
    with engine.snapshot() as snapshot:
        assert snapshot.table("data").get(keys[-1]) == b"of-\xff\xff\xff"


@pytest.mark.parametrize(
    ("key", "before", "first"),
    [
        (b"", None, b"b"),
        (b"a", None, b"b"),
        (b"b", None, b"b"),
        (b"c", b"b", b"d"),
        (b"d", b"b", b"d"),
        (b"e", b"d", None),
    ],
)
def test_what_is_around_a_key(engine: Engine, key: bytes, before: bytes | None, first: bytes | None) -> None:
    """Whether there is such a row or not; the way of every proof that nothing is missing (R14)."""
    put(engine, (b"b", b"1"), (b"d", b"2"))
    wanted = {None: None, b"b": (b"b", b"1"), b"d": (b"d", b"2")}
    with engine.snapshot() as snapshot:
        table = snapshot.table("data")
        for _ in range(2):  # also when it was asked before
            found = table.around(key)
            assert (as_bytes(found[0]), as_bytes(found[1])) == (wanted[before], wanted[first])
        below, rows = table.seek(key)
        assert below == wanted[before]
        assert next(rows, None) == wanted[first]


def test_several_scans_of_a_table_at_once(engine: Engine) -> None:
    put(engine, *((b"%d" % n, b"v%d" % n) for n in range(6)))
    with engine.snapshot() as snapshot:
        table = snapshot.table("data")
        (_, low), (_, high) = table.seek(b"0"), table.seek(b"3")
        found = [next(low), next(high), next(low), as_bytes(table.around(b"5")[0]), next(high), next(low)]
    assert found == [(b"%d" % n, b"v%d" % n) for n in (0, 3, 1, 4, 4, 2)]


def test_tables_are_apart(engine: Engine) -> None:
    put(engine, (b"k", b"in data"))
    put(engine, (b"k", b"in aux"), (b"l", b""), table="aux")
    assert rows_of(engine) == [(b"k", b"in data")]
    assert rows_of(engine, "aux") == [(b"k", b"in aux"), (b"l", b"")]
    assert rows_of(engine, "meta") == []


def test_a_snapshot_does_not_move_on(engine: Engine) -> None:
    """Nor do its scans that have begun, and whichever of its two ways it is read."""
    put(engine, (b"a", b"1"), (b"b", b"1"))
    snapshot = engine.snapshot()
    table = snapshot.table("data")
    _, rows = table.seek(b"a")
    assert next(rows) == (b"a", b"1")
    engine.write([Slice("data", [(b"a", b"2"), (b"aa", b"2")], [b"b"])])
    assert next(rows) == (b"b", b"1")
    assert table.get(b"a") == b"1"
    assert table.get(b"aa") is None
    before, first = table.around(b"aa")
    assert (as_bytes(before), as_bytes(first)) == ((b"a", b"1"), (b"b", b"1"))
    assert list(snapshot.table("data").seek(b"")[1]) == [(b"a", b"1"), (b"b", b"1")]
    snapshot.close()
    assert rows_of(engine) == [(b"a", b"2"), (b"aa", b"2")]


def test_a_snapshot_is_one_while_another_thread_writes(engine: Engine) -> None:
    """Both ways of reading it show one transaction, whenever it was opened."""
    put(engine, (b"k", b"0"), (b"l", b"0"))
    done = threading.Event()

    def write() -> None:
        for n in range(1, 150):
            put(engine, (b"k", b"%d" % n), (b"l", b"%d" % n))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while True:
            with engine.snapshot() as snapshot:
                table = snapshot.table("data")
                shown = as_bytes(table.around(b"l")[1])
                assert shown is not None
                assert table.get(b"k") == table.get(b"l") == shown[1]
            if done.is_set():
                return
    finally:
        writer.join()


def test_both_ways_of_reading_show_one_transaction(tmp_path: Path) -> None:
    """In LMDB they are two of its transactions: one is committed after the first has begun, and before the second."""
    engine = LmdbEngine.open(tmp_path, MIB)
    engine.open_table("data", create=True)
    put(engine, (b"k", b"before"))
    began = 0

    class Env:
        def begin(self, db: object = None, buffers: bool = False) -> object:
            nonlocal began
            began += 1
            if began == 2:
                put(engine, (b"k", b"after"))
            return engine._env.begin(db=db, buffers=buffers)

    snapshot = LmdbSnapshot(Env(), engine._dbs)
    table = snapshot.table("data")
    assert (table.get(b"k"), as_bytes(table.around(b"k")[1])) == (b"after", (b"k", b"after"))
    assert began == 4
    snapshot.close()
    engine.close()


# --- writing ------------------------------------------------------------------------------------------


def test_a_transaction_is_of_slices_of_which_the_later_counts(engine: Engine) -> None:
    put(engine, (b"a", b"0"), (b"b", b"0"), (b"c", b"0"))
    engine.write(
        iter(
            [
                Slice("data", [(b"a", b"1"), (b"d", b"1")], [b"b", b"never there"]),
                Slice("aux", [(b"a", b"aux")]),
                Slice("data", [(b"b", b"2")], [b"d", b"c"]),
            ]
        )
    )
    assert rows_of(engine) == [(b"a", b"1"), (b"b", b"2")]
    assert rows_of(engine, "aux") == [(b"a", b"aux")]
    engine.write([])
    assert len(rows_of(engine)) == 2


def test_slices_are_made_as_they_are_asked_for(engine: Engine) -> None:
    """So that large transactions need not be laid out at once, and nothing is seen of them before their end."""

    def slices() -> Iterator[Slice]:
        for n in range(3):
            yield Slice("data", [(b"%d" % n, b"")])
            assert rows_of(engine) == []

    engine.write(slices())
    assert len(rows_of(engine)) == 3


@pytest.mark.parametrize("how", ["raises", "no key", "long key"])
def test_a_transaction_that_fails_changes_nothing(kept: Kept, how: str) -> None:
    engine = kept.ready()
    put(engine, (b"a", b"1"))

    def slices() -> Iterator[Slice]:
        yield Slice("data", [(b"b", b"1")], [b"a"])
        yield Slice("aux", [(b"b", b"1")])
        if how == "raises":
            raise ZeroDivisionError
        yield Slice("data", [(b"" if how == "no key" else bytes(MAX_KEY_BYTES + 1), b"1")])

    with pytest.raises(ZeroDivisionError if how == "raises" else StorageError):
        engine.write(slices())
    for _ in range(2):
        assert (rows_of(engine), rows_of(engine, "aux")) == ([(b"a", b"1")], [])
        engine.close()
        engine = kept.ready()
    put(engine, (b"c", b"1"))
    assert len(rows_of(engine)) == 2
    engine.close()


@pytest.mark.parametrize("kind", KINDS)
def test_no_room_changes_nothing_and_goes_by(tmp_path: Path, kind: type[Kept]) -> None:
    """What does not fit is refused as a whole and may be tried again; deletes make room."""
    engine = kind(tmp_path, MIB).ready()
    value, count = bytes(2000), 0
    with suppress(NoRoom):
        while True:
            engine.write([Slice("aux", [(b"%03d" % count, value)]), Slice("data", [(b"n", b"%d" % count)])])
            count += 1
    assert 100 < count < 1000
    too_much = [Slice("data", [(b"n", b"")]), Slice("aux", [(b"more-%d" % n, value) for n in range(300)])]
    for _ in range(2):
        with pytest.raises(NoRoom, match="the state is full"):
            engine.write(too_much)
        assert rows_of(engine) == [(b"n", b"%d" % (count - 1))]
        assert len(rows_of(engine, "aux")) == count
    for n in range(count // 2):
        engine.write([Slice("aux", (), [b"%03d" % n])])
    for n in range(count // 4):
        put(engine, (b"new-%d" % n, value), table="aux")
    engine.close()


def test_pages_say_how_much_room_there_is(engine: Engine) -> None:
    engine.make_room(100, 300_000)
    empty = engine.pages()
    put(engine, *((b"%d" % n, bytes(3000)) for n in range(100)))
    full = engine.pages()
    assert full.limit == empty.limit == 64 * MIB
    assert 300_000 <= full.used - full.free - (empty.used - empty.free) < 600_000
    engine.write([Slice("data", (), [b"%d" % n for n in range(100)])])
    engine.write([Slice("data", (), [b"nothing"])])
    after = engine.pages()
    assert after.used - after.free < full.used - full.free - 200_000, "what was deleted may be used again"
    assert all(pages.ahead >= 0 for pages in (empty, full, after))


# --- opening ------------------------------------------------------------------------------------------


def test_what_was_committed_is_there_when_it_is_opened_again(kept: Kept) -> None:
    engine = kept.open()
    assert not engine.open_table("data", create=False), "nobody has made it"
    assert engine.open_table("data", create=True)
    engine.sync()
    put(engine, (b"k", b"v"))
    engine.close()
    again = kept.open()
    assert again.open_table("data", create=False)
    assert not again.open_table("aux", create=False)
    assert again.open_table("data", create=True), "it is not made anew"
    again.sync()
    assert rows_of(again) == [(b"k", b"v")]
    again.close()


def test_a_reading_that_cannot_be_made_has_its_own_error(engine: Engine) -> None:
    assert issubclass(engine.unreadable, Exception)
    assert not issubclass(engine.unreadable, StorageError | OSError)


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"no such file of LMDB" * 1000)
    with pytest.raises(StorageError, match=r"the state in .* cannot be opened"):
        LmdbEngine.open(tmp_path, MIB)


# --- histories ----------------------------------------------------------------------------------------

KEYS = st.binary(min_size=1, max_size=3) | st.sampled_from([b"\xff" * 511, b"\xff" * 510, b"a" * 400])
VALUES = st.binary(max_size=20) | st.sampled_from([bytes(5000), b""])
SLICES = st.builds(
    lambda table, puts, deletes: Slice(
        table, list(puts.items()), [key for key in deletes if key not in puts]
    ),
    st.sampled_from(TABLES),
    st.dictionaries(KEYS, VALUES, max_size=5),
    st.lists(KEYS, max_size=4, unique=True),
)
HISTORIES = st.lists(st.lists(SLICES, max_size=3), min_size=1, max_size=8)

State = dict[str, dict[bytes, bytes]]


def after(state: State, slices: list[Slice]) -> State:
    new = {name: dict(rows) for name, rows in state.items()}
    for table, puts, deletes in slices:
        new[table].update(puts)
        for key in deletes:
            new[table].pop(key, None)
    return new


def agrees(snapshot: Snapshot, state: State, asked: list[bytes]) -> None:
    for name, rows in state.items():
        table, keys = snapshot.table(name), sorted(rows)
        for key in (b"", *asked):
            at = bisect_left(keys, key)
            before = (keys[at - 1], rows[keys[at - 1]]) if at else None
            on = [(k, rows[k]) for k in keys[at:]]
            below, found = table.seek(key)
            assert (below, list(found)) == (before, on)
            one, two = table.around(key)
            assert (as_bytes(one), as_bytes(two)) == (before, on[0] if on else None)
            if key:
                assert table.get(key) == rows.get(key)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(history=HISTORIES, asked=st.lists(KEYS, max_size=6), seed=st.integers(0, 1 << 30))
def test_any_history_reads_as_it_was_written(
    kind: type[Kept], history: list[list[Slice]], asked: list[bytes], seed: int
) -> None:
    """Through transactions, snapshots that are kept across them, and processes that end."""
    random = Random(seed)
    with TemporaryDirectory() as folder:
        kept = kind(Path(folder))
        engine = kept.ready()
        state: State = {name: {} for name in TABLES}
        open_ones: list[tuple[Snapshot, State]] = []
        for slices in history:
            if random.random() < 0.3:
                open_ones.append((engine.snapshot(), state))
            engine.write(slices)
            state = after(state, slices)
            keys = [key for one in slices for key, _ in one.puts]
            with engine.snapshot() as snapshot:
                agrees(snapshot, state, asked + keys)
            for old, then in open_ones:
                agrees(old, then, asked + keys)
            if random.random() < 0.3:
                for old, _ in open_ones:
                    old.close()
                open_ones.clear()
                engine.close()
                engine = kept.ready()
        with engine.snapshot() as snapshot:
            agrees(snapshot, state, asked)
        for old, _ in open_ones:
            old.close()
        engine.close()
