"""Events, messages and effects as one line for people: what a replay and the transcripts of the tests print. Pure.

Epochs are written ``term.restart``, positions of the log ``index@epoch``, times in ms.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from metastore.core import effects as fx
from metastore.core.configs import unpack_config
from metastore.core.entry import HEAD, entry_position
from metastore.core.messages import Process
from metastore.errors import MetastoreError
from metastore.layout import ConfigRecord, Member, MoveRecord

_EPOCHS: Final = frozenset(
    {"epoch", "sealed", "resigned", "sealed_epoch", "emptied_epoch", "last_epoch", "index_epoch"}
)
#: fields that are written together as one position: (epoch, index) -> its name
_POSITIONS: Final = {
    ("prev_epoch", "prev_index"): "prev",
    ("last_epoch", "last_index"): "last",
    ("hint_epoch", "hint_index"): "hint",
    ("at_epoch", "at_index"): "at",
    ("index_epoch", "index"): "at",
}
#: what says little to people
_LEFT_OUT: Final = frozenset({"echo", "clock", "number"})
_MOST_SHOWN: Final = 8


def field_names(kind: type[Any]) -> tuple[str, ...]:
    """Of a NamedTuple or a dataclass, in order."""
    found: tuple[str, ...] | None = getattr(kind, "_fields", None)
    return found if found is not None else tuple(f.name for f in dataclasses.fields(kind))


def epoch_text(epoch: int) -> str:
    return f"{epoch >> 16}.{epoch & 0xFFFF}"


def line_of(thing: Any) -> str:
    """An event, a message or an effect."""
    if isinstance(thing, fx.Send):
        return f"to {thing.node}{' when durable' if thing.durable else ''}: {line_of(thing.message)}"
    kind = type(thing)
    names = field_names(kind)
    texts, together = [kind.__name__], {}
    for (epoch, index), name in _POSITIONS.items():
        if epoch in names and index in names:
            together[epoch] = ""
            together[index] = (
                f"{name}={getattr(thing, index)}@{epoch_text(getattr(thing, epoch))}"
                if name not in together
                else ""
            )
    for name in names:
        if name in together:
            texts.append(together[name])
        elif name not in _LEFT_OUT and not (kind is fx.PersistEntries and name == "entries"):
            texts.append(_field(name, getattr(thing, name)))
    return " ".join(text for text in texts if text)


def _field(name: str, value: Any) -> str:
    if name == "resigned" and not value:
        return ""
    if name in _EPOCHS and type(value) is int:
        return f"{name}={epoch_text(value)}"
    if name.endswith("_ns") and type(value) is int:
        return f"{name[:-3]}={value / 1_000_000:g}ms"
    if name in ("entries", "blobs"):
        return f"entries={_entries(value)}"
    if name == "beats":
        return "beats=" + _some([f"{p}:{epoch_text(e)}:{_says(s)}:{c}" for p, e, s, c in value])
    if name == "refused":
        return "" if not value else "refused=" + _some([f"{p}:{epoch_text(e)}" for p, e in value])
    if name == "config" and type(value) is bytes:
        return f"config=({config_text(unpack_config(value))})" if value else "config=none"
    if name == "reason" or name == "why" or name == "how":
        return f"({value})"
    return f"{name}={_value(value)}"


def _says(sum_of: int) -> str:
    return {0: "ailing", 1: "healthy", 2: "fresh", 3: "healthy+fresh"}.get(sum_of, str(sum_of))


def _value(value: Any) -> str:
    if isinstance(value, Process):
        return f"{value.node}/{value.incarnation}"
    if isinstance(value, ConfigRecord):
        return f"({config_text(value)})"
    if isinstance(value, MoveRecord):
        cancelled = " cancelled" if value.cancel else ""
        return f"(to {_members(value.target)} in {value.cell or 'its cell'}{cancelled})"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} B"
    if isinstance(value, MetastoreError):
        return f"{type(value).__name__}({value})"
    if value is None:
        return "none"
    if isinstance(value, list | tuple | set | frozenset):
        return _some([_value(v) for v in value])
    if dataclasses.is_dataclass(value) or hasattr(value, "_fields"):
        return f"[{line_of(value)}]"
    if hasattr(value, "last_position"):
        epoch, index = value.last_position()
        return f"[{value.base_index}@{epoch_text(value.base_epoch)}..{index}@{epoch_text(epoch)}]"
    return str(value)


def config_text(config: ConfigRecord) -> str:
    """``2.0 led by a of a,b,c``, with what is not usual."""
    text = f"{epoch_text(config.epoch)} led by {config.leader or 'nobody'} of {_members(config.replicas)}"
    if config.joint is not None:
        text += f" and {_members(config.joint)}"
    if config.parent is not None:
        parent, epoch, index = config.parent
        text += f", split off {parent} by {index}@{epoch_text(epoch)}"
    if config.generation:
        text += f", generation {config.generation}"
    return text


def _members(members: tuple[Member, ...]) -> str:
    return ",".join(node if store == f"s{node}" else f"{node}:{store}" for node, store in members)


def _entries(blobs: list[bytes]) -> str:
    texts = []
    for blob in blobs[:_MOST_SHOWN]:
        index, epoch = entry_position(blob) if len(blob) >= HEAD.size else (0, 0)
        size = len(blob) - HEAD.size
        texts.append(f"{index}@{epoch_text(epoch)}{f':{size}B' if size > 0 else ''}")
    return _some(texts, len(blobs))


def _some(texts: list[str], count: int | None = None) -> str:
    count = len(texts) if count is None else count
    more = f",… {count} in all" if count > _MOST_SHOWN else ""
    return f"[{','.join(texts[:_MOST_SHOWN])}{more}]"
