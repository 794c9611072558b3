"""``python -m tests.golden`` tells what is not as its golden has it; ``--write`` writes the goldens that are not there yet.

A golden that is there is never written over: what other builds have written does not change any more.
"""

from __future__ import annotations

import sys

from tests.golden.catalogue import FORMS
from tests.golden.formats import golden_versions, read_golden, wrong


def main(write: bool) -> int:
    told = []
    for form in FORMS:
        path = form.file(form.version)
        if write and not path.exists():
            path.write_text(form.text())
            print(f"written: {path.name}")
        elif write and not set(form.examples) <= set(read_golden(path)):
            found, lines = read_golden(path), path.read_text()
            for name, raw in form.written().items():
                if name not in found:
                    lines += f"{name} {raw.hex() or '-'}\n"
                    print(f"added to {path.name}: {name}")
            path.write_text(lines)
        told += [text for version in golden_versions(form) for text in wrong(form, version)]
    print("\n".join(told) or "all as it was")
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main("--write" in sys.argv[1:]))
