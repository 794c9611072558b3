"""Every form in which bytes leave a process of metastore."""

from __future__ import annotations

from typing import Final

from tests.golden import records, storage, wire
from tests.golden.formats import Form

FORMS: Final[list[Form]] = [*wire.forms(), *records.forms(), *storage.forms()]
