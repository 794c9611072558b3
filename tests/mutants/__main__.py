"""``python -m tests.mutants``: the score, and every mutation that nobody notices."""

from __future__ import annotations

import argparse
import collections
import sys
import tempfile
from pathlib import Path

from tests.mutants.mutants import problems, read_mutants
from tests.mutants.runner import BROKEN, SURVIVED, Journal, Verdict, judge_all

WANTED = 0.95


def line(v: Verdict) -> str:
    return f"{v.outcome:9} {v.seconds:6.1f} s  {v.mutant.name:24} {v.by.splitlines()[0] if v.by else ''}"


def report(verdicts: list[Verdict]) -> str:
    """For people: the score, how long the tests took, the survivors with what they are, then everything."""
    seen = sum(v.seen for v in verdicts)
    counts = collections.Counter(v.outcome for v in verdicts)
    lines = [
        f"{seen} of {len(verdicts)} mutations noticed: {100 * seen / len(verdicts):.1f} % "
        f"({', '.join(f'{n} {outcome}' for outcome, n in sorted(counts.items()))}), {sum(v.seconds for v in verdicts):.0f} s"
    ]
    for v in verdicts:
        if not v.seen:
            lines += ["", f"{v.outcome}: {v.mutant.name}: {v.mutant.what}", f"  in {v.mutant.file}"]
            lines += [f"  {text}" for text in v.by.splitlines()[-12:]]
    return "\n".join([*lines, "", *map(line, sorted(verdicts, key=lambda v: v.mutant.name))])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="only those whose name or file begins so (all)")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (2)")
    parser.add_argument(
        "--report", type=Path, help="a file for the result, and for what there is of it meanwhile"
    )
    parser.add_argument(
        "--journal", type=Path, default=Path("mutants-verdicts.jsonl"), help="a file of verdicts"
    )
    parser.add_argument("--resume", action="store_true", help="take the verdicts that the journal has")
    parser.add_argument("--no-simulation", action="store_true", help="the named tests only")
    asked = parser.parse_args()
    every = read_mutants()
    wrong = problems(every)
    if wrong:
        print("\n".join(wrong))
        return 2
    chosen = tuple(asked.names) or ("",)
    mutants = [m for m in every if m.name.startswith(chosen) or m.file.startswith(chosen)]
    if not mutants:
        print(f"no mutation is called {' or '.join(asked.names)}")
        return 2
    journal = Journal(asked.journal, mutants, resume=asked.resume)
    verdicts = [v for v in map(journal.known, mutants) if v is not None]

    def told(v: Verdict) -> None:
        print(line(v), flush=True)
        journal.note(v)
        verdicts.append(v)
        if asked.report:
            asked.report.write_text(report(verdicts) + "\n")

    if verdicts:
        print(f"{len(verdicts)} verdicts are known already", flush=True)
    rest = [m for m in mutants if m not in {v.mutant for v in verdicts}]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        judge_all(rest, Path(folder), asked.jobs, simulate=not asked.no_simulation, told=told)
    text = report(verdicts)
    print("\n" + text)
    if asked.report:
        asked.report.write_text(text + "\n")
    if any(v.outcome == BROKEN for v in verdicts):
        return 2
    unexplained = [v for v in verdicts if v.outcome == SURVIVED and not v.mutant.survives]
    return int(bool(unexplained) or sum(v.seen for v in verdicts) < WANTED * len(verdicts))


if __name__ == "__main__":
    sys.exit(main())
