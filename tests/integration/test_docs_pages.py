"""What docs/concepts.md, docs/python.md and docs/consistency.md say is what happens."""

from __future__ import annotations

import doctest
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.docs_console import run
from tests.integration.harness import Cluster

DOCS = Path(__file__).parents[2] / "docs"
ROUTER, NODE = "http://127.0.0.1:8080", "127.0.0.1:24814"
LEAST_EXAMPLES = {"python": 35, "consistency": 9}


def play(page: str, cluster: Cluster, runner: doctest.DocTestRunner) -> None:
    """Every example of a page, on ``cluster``."""
    text = (DOCS / f"{page}.md").read_text()
    text = text.replace(ROUTER, cluster.router).replace(NODE, cluster.json()["nodes"][0]["rpc"])
    test = doctest.DocTestParser().get_doctest(text.replace("\n```", "\n\n```"), {}, page, f"{page}.md", 0)
    assert len(test.examples) >= LEAST_EXAMPLES[page]
    said: list[str] = []
    failed, tried = runner.run(test, out=said.append)
    assert tried == len(test.examples)
    assert not failed, "".join(said)


@pytest.mark.parametrize("page", LEAST_EXAMPLES)
def test_every_example_does_what_the_page_says(shared_cell: Cluster, page: str) -> None:
    play(page, shared_cell, doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE))


class Killer(doctest.DocTestRunner):
    """Kills the node that leads most before every sixth example; it is back before the next kill."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(optionflags=doctest.NORMALIZE_WHITESPACE)
        self.cluster = cluster
        self.begun = 0
        self.killed: list[str] = []

    def report_start(self, out: Any, test: doctest.DocTest, example: doctest.Example) -> None:
        self.begun += 1
        if self.begun % 6:
            return
        if self.killed:
            self.cluster.verb("restart", self.killed[-1])
            self.cluster.wait_until_whole()
        leaders = [leader for leader, _ in self.cluster.leaders().values()]
        self.killed.append(max(sorted(set(leaders)), key=leaders.count))
        os.kill(self.cluster.node(self.killed[-1])["pid"], signal.SIGKILL)


@pytest.mark.nightly
def test_the_examples_while_leaders_are_killed(cell: Cluster) -> None:
    """Nothing in the page tells that a leader is dead."""
    killer = Killer(cell)
    play("python", cell, killer)
    assert len(killer.killed) >= 5


@pytest.mark.nightly
def test_the_commands_of_the_operators_guide(cell: Cluster, tmp_path: Path) -> None:
    """Every verb that is shown does what the page says, on a cluster of its own."""
    tool = Path(sys.executable).with_name("cellctl")
    wrong = run(DOCS / "cellctl.md", {"cellctl ": f"cd {tmp_path}; at_data {tool} "}, at_data(cell.data))
    assert not wrong, "\n".join(wrong)


def at_data(data: Path) -> str:
    """A shell function that runs a verb on that cluster; not those that take no cluster."""
    return (
        'at_data() { tool=$1; shift; case "$1 ${2:-}" in "snapshot show") "$tool" "$@";; '
        f'*) "$tool" "$@" --data {data};; esac; }}\n'
    )


def test_the_commands_of_the_concepts(shared_cell: Cluster) -> None:
    tool = str(Path(sys.executable).with_name("cellctl"))
    with_data = {f"cellctl {verb} ": f"{tool} {verb} --data {shared_cell.data} " for verb in ("status",)}
    for two in ("kv put", "kv get", "partition locate"):
        with_data[f"cellctl {two} "] = f"{tool} {two} --data {shared_cell.data} "
    wrong = run(DOCS / "concepts.md", with_data)
    assert not wrong, "\n".join(wrong)
