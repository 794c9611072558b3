"""``cellctl``: the operator's tool. Exit codes: 0 done, 1 nothing to do or a warning, 2 error."""

from __future__ import annotations

import difflib
import sys
import traceback

import click
from click import shell_completion

from cellctl.advise import advise_
from cellctl.backup import snapshot
from cellctl.control import control
from cellctl.dev import dev
from cellctl.doctor import doctor
from cellctl.failover import failover
from cellctl.features import features
from cellctl.generations import new_generation
from cellctl.history import history
from cellctl.import_tree import import_
from cellctl.jsonl import export
from cellctl.kv import kv
from cellctl.leaders import switchover, topology_, verify
from cellctl.moving import move, replace, show, split
from cellctl.namespace import namespace
from cellctl.output import note
from cellctl.rebalance import cell, node, pause, rebalance, resume
from cellctl.status import partition, status
from metastore.errors import MetastoreError


class Verbs(click.Group):
    """Suggests the nearest name for a mistyped one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            close = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            if close:
                raise click.UsageError(f"No such command {args[0]!r}. Did you mean {close[0]!r}?", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="metastore")
@click.option("--debug", is_flag=True, help="Show where a failure of cellctl itself comes from.")
def cli(debug: bool) -> None:
    """Run, look at and operate a metastore cluster."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """What makes a shell complete verbs and options. Example: eval "$(cellctl completion bash)\""""
    found = shell_completion.get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "cellctl", "_CELLCTL_COMPLETE").source())


partition.add_command(show)
partition.add_command(move)
partition.add_command(split)
partition.add_command(new_generation)
node.add_command(replace)
for command in (
    advise_,
    cell,
    completion,
    control,
    dev,
    doctor,
    export,
    failover,
    features,
    history,
    import_,
    kv,
    namespace,
    node,
    partition,
    pause,
    rebalance,
    resume,
    snapshot,
    status,
    switchover,
    topology_,
    verify,
):
    cli.add_command(command)


def main() -> None:
    """Entry point."""
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """The exit code. Whatever was read on the way, it ends in a line that says what is wrong; where in cellctl it was
    found is of interest only if cellctl is at fault (``--debug``, anywhere among the options)."""
    ours = args[: args.index("--")] if "--" in args else args
    debug = "--debug" in ours
    args = [a for a in ours if a != "--debug"] + args[len(ours) :]
    try:
        cli(args, prog_name="cellctl", standalone_mode=False)
        return 0
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else 2 if e.code else 0
    except click.exceptions.Exit as e:
        return e.exit_code
    except (click.Abort, BrokenPipeError):
        return 2
    except click.ClickException as e:
        e.show()
        return 2
    except Exception as e:
        if debug:
            traceback.print_exc()
        note(f"cellctl: {what_failed(e)}")
        return 2


def what_failed(error: Exception) -> str:
    """One line for people."""
    if isinstance(error, MetastoreError):
        return error.message
    if isinstance(error, OSError):
        return str(error)
    text = f"{type(error).__name__}: {error}"[:500]
    return f"something was met that cellctl does not know how to take, {text} (cellctl --debug shows where)"


if __name__ == "__main__":
    main()
