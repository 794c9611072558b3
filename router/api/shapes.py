"""Types of values: each gives its JSON Schema and holds a value to it, so the two cannot drift. Pure.

``parse`` takes the text of a path, query or header parameter, ``check`` a value out of JSON; both
return it as the handlers want it, and raise InvalidRequest with the name, the value and the bound.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from metastore.errors import InvalidRequest, MetastoreError, TooLarge

Schema = dict[str, Any]
_WHOLE: Final = re.compile(r"-?[0-9]{1,19}\Z")
_NUMBER: Final = re.compile(r"-?[0-9]{1,19}(\.[0-9]{1,19})?([eE][+-]?[0-9]{1,3})?\Z")


def shown(value: Any) -> str:
    """A value for a message, cut to a line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


class Shape:
    """See the module. ``name``: a shape that has one is a component of its own in the document."""

    name: str = ""
    text: str = ""

    def schema(self) -> Schema:
        raise NotImplementedError

    def check(self, value: Any, where: str) -> Any:
        raise NotImplementedError

    def parse(self, text: str, where: str) -> Any:
        return self.check(text, where)

    def parts(self) -> Sequence[Shape]:
        """The shapes within this one."""
        return ()

    def reference(self) -> Schema:
        """The schema, or a reference to it."""
        return {"$ref": f"#/components/schemas/{self.name}"} if self.name else self.schema()


@dataclass(frozen=True)
class Integer(Shape):
    """A whole number from ``low`` to ``high``."""

    low: int
    high: int

    def schema(self) -> Schema:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}

    def check(self, value: Any, where: str) -> int:
        if type(value) is float and value.is_integer():
            value = int(value)  # 5.0 is a whole number in JSON
        if type(value) is not int or not self.low <= value <= self.high:
            raise InvalidRequest(
                f"{where} = {shown(value)} is not a whole number from {self.low} to {self.high}"
            )
        return value

    def parse(self, text: str, where: str) -> int:
        return self.check(int(text) if _WHOLE.match(text) else text, where)


@dataclass(frozen=True)
class Number(Shape):
    """A number from ``low`` to ``high``."""

    low: float
    high: float

    def schema(self) -> Schema:
        return {"type": "number", "minimum": self.low, "maximum": self.high}

    def check(self, value: Any, where: str) -> float:
        if type(value) not in (int, float) or not math.isfinite(value) or not self.low <= value <= self.high:
            raise InvalidRequest(f"{where} = {shown(value)} is not a number from {self.low} to {self.high}")
        return float(value)

    def parse(self, text: str, where: str) -> float:
        return self.check(float(text) if _NUMBER.match(text) else text, where)


@dataclass(frozen=True)
class Flag(Shape):
    """true or false."""

    def schema(self) -> Schema:
        return {"type": "boolean"}

    def check(self, value: Any, where: str) -> bool:
        if type(value) is not bool:
            raise InvalidRequest(f"{where} = {shown(value)}: use true or false")
        return value

    def parse(self, text: str, where: str) -> bool:
        return self.check({"true": True, "false": False}.get(text, text), where)


@dataclass(frozen=True)
class Choice(Shape):
    """One of a few words."""

    words: tuple[str, ...]

    def schema(self) -> Schema:
        return {"type": "string", "enum": list(self.words)}

    def check(self, value: Any, where: str) -> str:
        if type(value) is not str or value not in self.words:
            raise InvalidRequest(f"{where} = {shown(value)}: use {', '.join(self.words)}")
        return value


@dataclass(frozen=True)
class Text(Shape):
    """Text of ``low`` to ``high`` characters that matches ``pattern``; ``what`` says so in words."""

    low: int = 0
    high: int = 1 << 20
    pattern: str = ""
    what: str = ""
    name: str = ""
    text: str = ""
    example: str = ""

    def schema(self) -> Schema:
        found: Schema = {"type": "string", "minLength": self.low, "maxLength": self.high}
        if self.pattern:
            found["pattern"] = f"^(?:{self.pattern})$"
        if self.text:
            found["description"] = self.text
        if self.example:
            found["examples"] = [self.example]
        return found

    def check(self, value: Any, where: str) -> str:
        if type(value) is str and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise InvalidRequest(f"{where} = {shown(value)} is not UTF-8") from None
        if type(value) is not str or (self.pattern and not re.fullmatch(self.pattern, value)):
            raise InvalidRequest(f"{where} = {shown(value)} is not {self.what or 'text'}")
        if not self.low <= len(value) <= self.high:
            what = self.what or f"text of {self.low} to {self.high} characters"
            kind: type[MetastoreError] = TooLarge if len(value) > self.high else InvalidRequest
            raise kind(f"{where} = {shown(value)} of {len(value)} characters is not {what}")
        return value


@dataclass(frozen=True)
class Base64(Shape):
    """Bytes as base64; ``check`` gives the bytes."""

    max_bytes: int

    @property
    def max_chars(self) -> int:
        return -(-self.max_bytes // 3) * 4

    def schema(self) -> Schema:
        return {
            "type": "string",
            "contentEncoding": "base64",
            "maxLength": self.max_chars,
            "pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
        }

    def check(self, value: Any, where: str) -> bytes:
        if type(value) is str and len(value) > self.max_chars:
            raise TooLarge(f"{where} of {len(value)} characters is over the limit of {self.max_bytes} bytes")
        try:
            return base64.b64decode(value.encode("ascii"), validate=True)
        except (AttributeError, ValueError, binascii.Error):
            raise InvalidRequest(f"{where} = {shown(value)} is not base64") from None


@dataclass(frozen=True)
class Const(Shape):
    """Exactly one word."""

    word: str

    def schema(self) -> Schema:
        return {"const": self.word, "type": "string"}

    def check(self, value: Any, where: str) -> str:
        if value != self.word:
            raise InvalidRequest(f"{where} = {shown(value)}: use {self.word}")
        return self.word


@dataclass(frozen=True)
class ListOf(Shape):
    """``low`` to ``high`` values of one shape."""

    item: Shape
    high: int
    low: int = 0

    def schema(self) -> Schema:
        found: Schema = {"type": "array", "items": self.item.reference(), "maxItems": self.high}
        return {**found, "minItems": self.low} if self.low else found

    def parts(self) -> Sequence[Shape]:
        return (self.item,)

    def check(self, value: Any, where: str) -> list[Any]:
        if type(value) is not list:
            raise InvalidRequest(f"{where} = {shown(value)} is not a list")
        if len(value) > self.high:
            raise TooLarge(f"{where} has {len(value)} elements; the limit is {self.high}")
        if len(value) < self.low:
            raise InvalidRequest(f"{where} has {len(value)} elements; at least {self.low} are needed")
        return [self.item.check(item, f"{where}[{number}]") for number, item in enumerate(value)]


@dataclass(frozen=True)
class EachOf(ListOf):
    """A list whose elements are held to the shape one by one: ``check`` puts the error where one is
    wrong, so that the others can be worked on."""

    def check(self, value: Any, where: str) -> list[Any]:
        if type(value) is not list or not self.low <= len(value) <= self.high:
            return super().check(value, where)
        found: list[Any] = []
        for number, item in enumerate(value):
            try:
                found.append(self.item.check(item, f"{where}[{number}]"))
            except MetastoreError as e:
                found.append(e)
        return found


@dataclass(frozen=True)
class Member:
    """One member of an object. ``default``: what ``check`` puts where it is missing; ... = nothing."""

    shape: Shape
    text: str = ""
    required: bool = False
    default: Any = ...

    def schema(self) -> Schema:
        found = self.shape.reference()
        extra: Schema = {}
        if self.text:
            extra["description"] = self.text
        if self.default is not ... and self.default is not None:
            extra["default"] = self.default
        return {**found, **extra}


@dataclass(frozen=True, eq=False)
class Object(Shape):
    """An object. ``one_of``: groups of members of which exactly one is given; ``not_both``: groups of
    which at most one is. Only an ``open`` one (an answer) may have members beyond those named."""

    members: Mapping[str, Member]
    name: str = ""
    text: str = ""
    one_of: tuple[tuple[str, ...], ...] = ()
    not_both: tuple[tuple[str, ...], ...] = ()
    open: bool = False

    def schema(self) -> Schema:
        found: Schema = {
            "type": "object",
            "properties": {name: member.schema() for name, member in self.members.items()},
        }
        required = [name for name, member in self.members.items() if member.required]
        if required:
            found["required"] = required
        if not self.open:
            found["additionalProperties"] = False
        if self.text:
            found["description"] = self.text
        rules: list[Schema] = [{"oneOf": [{"required": [n]} for n in group]} for group in self.one_of]
        for group in self.not_both:
            pairs = [[a, b] for i, a in enumerate(group) for b in group[i + 1 :]]
            rules += [{"not": {"required": pair}} for pair in pairs]
        if rules:
            found["allOf"] = rules
        return found

    def parts(self) -> Sequence[Shape]:
        return [member.shape for member in self.members.values()]

    def check(self, value: Any, where: str) -> dict[str, Any]:
        if type(value) is not dict:
            raise InvalidRequest(f"{where} = {shown(value)} is not an object")
        for name in value:
            if name not in self.members and not self.open:
                raise InvalidRequest(
                    f"{where} has an unknown member {shown(name)}; known: {', '.join(self.members)}"
                )
        found: dict[str, Any] = {}
        for name, member in self.members.items():
            if name in value:
                found[name] = member.shape.check(value[name], f"{where}.{name}")
            elif member.required:
                raise InvalidRequest(f"{where} has no member {name!r}")
            elif member.default is not ...:
                found[name] = member.default
        for group in self.one_of:
            if sum(name in value for name in group) != 1:
                raise InvalidRequest(f"{where} needs exactly one of {', '.join(group)}")
        for group in self.not_both:
            if sum(name in value for name in group) > 1:
                raise InvalidRequest(f"{where} takes at most one of {', '.join(group)}")
        return found


@dataclass(frozen=True, eq=False)
class Tagged(Shape):
    """One of several objects, told apart by the member ``tag``, a word."""

    tag: str
    kinds: Mapping[str, Object]
    name: str = ""
    text: str = ""

    def schema(self) -> Schema:
        found: Schema = {
            "oneOf": [kind.reference() for kind in self.kinds.values()],
            "discriminator": {
                "propertyName": self.tag,
                "mapping": {
                    word: f"#/components/schemas/{kind.name}"
                    for word, kind in self.kinds.items()
                    if kind.name
                },
            },
        }
        return {**found, "description": self.text} if self.text else found

    def parts(self) -> Sequence[Shape]:
        return list(self.kinds.values())

    def check(self, value: Any, where: str) -> dict[str, Any]:
        if type(value) is not dict:
            raise InvalidRequest(f"{where} = {shown(value)} is not an object")
        word = value.get(self.tag)
        kind = self.kinds.get(word) if type(word) is str else None
        if kind is None:
            raise InvalidRequest(f"{where}.{self.tag} = {shown(word)}: use {', '.join(self.kinds)}")
        return kind.check(value, where)


# --- of answers only: nothing is ever checked against them here ------------------------------


@dataclass(frozen=True, eq=False)
class OneOf(Shape):
    """Any of several shapes."""

    options: tuple[Shape, ...]
    name: str = ""
    text: str = ""

    def schema(self) -> Schema:
        found: Schema = {"anyOf": [option.reference() for option in self.options]}
        return {**found, "description": self.text} if self.text else found

    def parts(self) -> Sequence[Shape]:
        return self.options


@dataclass(frozen=True)
class Null(Shape):
    """null."""

    def schema(self) -> Schema:
        return {"type": "null"}


def or_null(shape: Shape) -> OneOf:
    return OneOf((shape, Null()))


# --- parameters -------------------------------------------------------------------------------

Place = Literal["path", "query", "header"]


@dataclass(frozen=True)
class Param:
    """A parameter of an operation. ``default``: what the handler sees when it is not given."""

    name: str
    place: Place
    shape: Shape
    text: str
    required: bool = False
    default: Any = None
    #: its name for the handlers: ``If-Match`` -> ``if_match``
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.name.lower().replace("-", "_"))

    def document(self) -> Schema:
        schema = self.shape.reference()
        if self.default is not None:
            schema = {**schema, "default": self.default}
        return {
            "name": self.name,
            "in": self.place,
            "required": self.required,
            "description": self.text,
            "schema": schema,
        }
