"""The scenarios, as data: what befalls whom, and when.

A step is ``(second, verb, *who)``. Who: a name (``c1n2``, ``etcd``), ``leader`` (of partition 0 at that
moment), ``follower`` (the first node that is not), ``it`` (whoever the last step picked), ``others`` (all
nodes but it), ``nodes``. Verbs are the methods of ``tests.chaos.faults.Faults``.
"""

from __future__ import annotations

from dataclasses import dataclass

Step = tuple[float, str, *tuple[str, ...]]


@dataclass(frozen=True)
class Scenario:
    """``network``: needs namespaces. ``short``: part of the set of CI. ``seconds`` of traffic; what
    is not undone by then is healed. ``died``: nodes that may have ended by themselves. ``routed``: half of the clients go
    through the router. ``etcds``: members of etcd. ``faultless``: no request may fail. ``builds``: nodes may be of another."""

    name: str
    says: str
    steps: tuple[Step, ...]
    seconds: float = 10.0
    network: bool = False
    short: bool = False
    died: int = 0
    routed: bool = False
    etcds: int = 1
    faultless: bool = False
    builds: bool = False


SCENARIOS = [
    Scenario("calm", "nothing happens", (), 6),
    Scenario(
        "leader-killed", "kill -9, back after 4 s", ((2, "kill", "leader"), (6, "restart", "it")), short=True
    ),
    Scenario(
        "leader-paused",
        "SIGSTOP for over three grants, then SIGCONT: it wakes up deposed",
        ((2, "pause", "leader"), (6, "resume", "it")),
    ),
    Scenario("follower-paused", "SIGSTOP for 5 s", ((2, "pause", "follower"), (7, "resume", "it"))),
    Scenario(
        "stutter", "the leader runs a tenth of the time", ((2, "stutter", "leader"), (7, "steady", "it"))
    ),
    Scenario("starved", "eight busy processes beside two cores", ((2, "starve"), (8, "feed"))),
    Scenario(
        "flooded",
        "the nodes are as busy as they can be, while leaders are killed, paused and lose their power",
        (
            (0.5, "flood"),
            (2.5, "kill", "leader"),
            (4, "restart", "it"),
            (6, "pause", "leader"),
            (9, "resume", "it"),
            (11, "power_off", "leader"),
            (12.5, "restart", "it"),
            (15, "ebb"),
        ),
        16,
    ),
    Scenario("etcd-killed", "no etcd for 6 s", ((2, "kill", "etcd"), (8, "restart", "etcd")), 12),
    Scenario(
        "etcd-paused", "etcd hangs for 8 s, leases expire", ((1, "pause", "etcd"), (9, "resume", "etcd")), 13
    ),
    Scenario(
        "etcd-then-leader",
        "etcd is killed, then the leader for good; etcd returns, then the node (R16)",
        ((1, "kill", "etcd"), (2, "kill", "leader"), (8, "restart", "etcd"), (10, "restart", "it")),
        13,
        short=True,
    ),
    Scenario(
        "etcd-flaps",
        "etcd comes and goes while leaders are killed",
        (
            (1, "kill", "etcd"),
            (2, "kill", "leader"),
            (3, "restart", "etcd"),
            (4, "restart", "it"),
            (5, "pause", "etcd"),
            (6, "kill", "leader"),
            (8, "resume", "etcd"),
            (9, "restart", "it"),
        ),
        13,
    ),
    Scenario(
        "all-killed",
        "every process at once",
        ((2, "kill", "nodes", "etcd", "router"), (3, "restart", "etcd"), (3.5, "restart", "nodes", "router")),
        12,
    ),
    Scenario(
        "power-off",
        "the power goes everywhere at once, twice: what was not synced is lost in any part",
        (
            (2, "power_off", "nodes"),
            (2.5, "restart", "nodes"),
            (6, "power_off", "nodes"),
            (6.5, "restart", "nodes"),
        ),
        11,
        short=True,
    ),
    Scenario(
        "power-off-in-turn",
        "whoever leads loses its power, over and over",
        tuple(
            step for s in range(1, 16, 3) for step in ((s, "power_off", "leader"), (s + 1.5, "restart", "it"))
        ),
        17,
    ),
    Scenario(
        "majority-killed",
        "two of three, one comes back",
        ((2, "kill", "leader"), (2.1, "kill", "follower"), (5, "restart", "it")),
        11,
    ),
    Scenario(
        "rolling-restart",
        "one node after the other, handing over",
        (
            (1, "restart_gracefully", "c1n1"),
            (4, "restart_gracefully", "c1n2"),
            (7, "restart_gracefully", "c1n3"),
        ),
        11,
    ),
    Scenario(
        "kills-in-turn",
        "whoever leads, over and over",
        tuple(step for s in range(1, 16, 3) for step in ((s, "kill", "leader"), (s + 1.5, "restart", "it"))),
        17,
    ),
    Scenario("slow-disk-follower", "80 ms a sync", ((2, "slow_disk", "follower"), (7, "good_disk", "it"))),
    Scenario("slow-disk-leader", "80 ms a sync", ((2, "slow_disk", "leader"), (7, "good_disk", "it"))),
    Scenario(
        "disk-hangs",
        "a leader's sync does not come back for 5 s: it leads nothing meanwhile",
        ((2, "hang_disk", "leader"), (7, "good_disk", "it")),
        12,
    ),
    Scenario(
        "sync-fails",
        "a failed sync ends the node (R14); it is restarted on a mended disk",
        ((2, "broken_disk", "leader"), (6, "good_disk", "it"), (6.5, "restart", "it")),
        died=1,
    ),
    Scenario(
        "disk-full",
        "a node's disk is full: it lives, leads nothing, and lags; freed, it goes on",
        ((1, "fill_disk", "follower"), (3, "fill_disk", "leader"), (9, "free_disk", "nodes")),
        12,
    ),
    Scenario(
        "disks-full",
        "all disks are full at once: nobody ends, reads and deletes go on, and writes once there is room; one is "
        "restarted while its disk is full",
        (
            (0.5, "leave_records"),
            (1.5, "fill_disk", "nodes"),
            (4, "reads_and_deletes_go_on"),
            (5, "kill", "leader"),
            (6, "restart", "it"),
            (9, "reads_and_deletes_go_on"),
            (10, "free_disk", "nodes"),
        ),
        14,
        short=True,
    ),
    Scenario(
        "clock-jumps",
        "wall clocks a day ahead, an hour back",
        (
            (2, "clock", "leader", "86400"),
            (4, "clock", "follower", "-3600"),
            (6, "clock", "leader", "-86400"),
        ),
    ),
    Scenario(
        "leader-cut-off",
        "from everybody, for 5 s",
        ((2, "isolate", "leader"), (7, "mend")),
        12,
        network=True,
        short=True,
    ),
    Scenario(
        "leader-deaf",
        "it is heard and does not hear",
        ((2, "deafen", "leader"), (7, "mend")),
        12,
        network=True,
    ),
    Scenario(
        "leader-mute", "it hears and is not heard", ((2, "mute", "leader"), (7, "mend")), 12, network=True
    ),
    Scenario(
        "leader-without-etcd",
        "it has its peers and no etcd: it goes on leading",
        ((2, "cut", "leader", "etcd"), (9, "mend")),
        12,
        network=True,
    ),
    Scenario(
        "one-link-cut",
        "leader and one follower",
        ((2, "cut", "leader", "follower"), (7, "mend")),
        12,
        network=True,
    ),
    Scenario(
        "slow-network",
        "40 ms between nodes, give or take 10: packets overtake each other",
        ((1, "slow_network", "40", "10"), (8, "mend")),
        11,
        network=True,
    ),
    Scenario(
        "leader-far",
        "what is sent to the leader takes 150 ms, give or take 100; what it sends does not",
        ((2, "far", "leader", "150", "100"), (8, "mend")),
        12,
        network=True,
    ),
    Scenario(
        "cuts-in-turn",
        "one node after the other is alone",
        tuple(
            step
            for i in range(5)
            for step in ((1 + 3 * i, "isolate", f"c1n{i % 3 + 1}"), (2.8 + 3 * i, "mend"))
        ),
        18,
        network=True,
    ),
    Scenario(
        "grow-and-shrink",
        "one cell becomes two, four, and one again; every drained cell is removed",
        (
            (1, "add_cells", "1"),
            (1, "rebalance"),
            (1, "add_cells", "2"),
            (1, "rebalance"),
            (1, "drain", "c1", "c2", "c4"),
            (1, "rebalance"),
            (1, "remove_cell", "c1", "c2", "c4"),
        ),
    ),
    Scenario(
        "moves-interrupted",
        "a partition moves to another cell and back, and each time something is killed on the way",
        (
            (0, "add_cells", "1"),
            *(
                (1, "interrupted_move", victim, str(after))
                for after in (0, 40, 120, 300, 700)
                for victim in ("source", "target", "etcd", "cellctl")
            ),
        ),
    ),
    Scenario("node-replaced", "a node dies for good; another takes its place", ((1, "replace", "c1n2"),)),
    Scenario(
        "splits",
        "every partition becomes two, and a leader is killed meanwhile",
        ((1, "divide", "0", "1"), (1.5, "kill", "leader"), (1.6, "divide", "2", "3"), (5, "restart", "it")),
        8,
    ),
    Scenario(
        "rolling-upgrade",
        "every node in turn becomes a later build, and the first two go back to this one: no request fails",
        (
            *((1 + n, "upgrade", f"c1n{n}") for n in (1, 2, 3)),
            *((4 + n, "roll_back", f"c1n{n}") for n in (1, 2)),
        ),
        12,
        routed=True,
        faultless=True,
        builds=True,
    ),
    Scenario(
        "routers-restarted",
        "the router is killed, and asked to stop, over and over, while half of the clients go through it",
        tuple(
            step
            for s in range(1, 13, 4)
            for step in ((s, "restart", "router"), (s + 2, "restart_gracefully", "router"))
        ),
        14,
        routed=True,
    ),
    Scenario(
        "etcd-leader-paused",
        "three members of etcd, of which the leader stands still while leaders of partitions are killed",
        (
            (2, "pause_etcd_leader"),
            (4, "kill", "leader"),
            (7, "restart", "it"),
            (9, "resume_etcds"),
            (11, "pause_etcd_leader"),
            (12, "kill", "leader"),
            (15, "restart", "it"),
        ),
        18,
        etcds=3,
    ),
    *(
        Scenario(
            f"etcd-lost-{how}",
            f"{says}, after leaders, replicas and partitions have changed; while nobody trusts it {then}; it is rebuilt from "
            "the stores, and all can change again: no request fails",
            (
                (0.5, "snapshot_etcd"),
                (1, "can_change", "1"),
                (1, "lose_etcd", how),
                *between,
                (3, "rebuild"),
                (3, "can_change", "2"),
            ),
            routed=True,
            faultless=True,
        )
        for how, says, then, between in (
            ("wiped", "etcd is empty", "nothing happens", ()),
            (
                "restored",
                "etcd is restored from an old snapshot",
                "a node is restarted",
                ((2, "restart_gracefully", "c1n2"),),
            ),
            (
                "replaced",
                "another etcd has what an old snapshot had",
                "a leader is killed",
                ((2, "kill", "leader"), (2, "all_are_led"), (2, "restart", "it")),
            ),
        )
    ),
    Scenario(
        "moves-cut",
        "replicas are taken away and given back while one node after the other is alone",
        tuple(
            step
            for i in range(4)
            for step in (
                (1 + 4 * i, "replicas", "c1n1", "c1n2", str(i)),
                (1.1 + 4 * i, "isolate", f"c1n{i % 3 + 1}"),
                (2.6 + 4 * i, "mend"),
                (3 + 4 * i, "replicas", "c1n1", "c1n2", "c1n3", str(i)),
                (3.05 + 4 * i, "isolate", f"c1n{(i + 1) % 3 + 1}"),
                (4.5 + 4 * i, "mend"),
            )
        ),
        19,
        network=True,
    ),
    Scenario(
        "splits-cut",
        "partitions are split while their leader is alone, deaf, or without etcd",
        (
            (1, "divide", "0", "1", "2"),
            (1.02, "isolate", "leader"),
            (3.5, "mend"),
            (5, "divide", "3", "4"),
            (5.02, "deafen", "leader"),
            (7.5, "mend"),
            (9, "divide", "5", "6", "7"),
            (9.02, "cut", "leader", "etcd"),
            (12, "mend"),
        ),
        15,
        network=True,
    ),
    Scenario(
        "snapshots-cut",
        "a node missed more than the log keeps; the snapshots that it is sent are cut off, twice",
        (
            (1, "kill", "c1n3"),
            (1.2, "fill_log", "90"),
            (1.4, "restart", "c1n3"),
            (2.4, "isolate", "c1n3"),
            (3.4, "mend"),
            (4, "isolate", "leader"),
            (6, "mend"),
        ),
        12,
        network=True,
    ),
    Scenario(
        "node-returns-empty",
        "a node comes back with an empty folder under its name; while it is filled, another is killed",
        (
            (2, "kill", "c1n3"),
            (3, "empty", "c1n3"),
            (3.2, "restart", "c1n3"),
            (5, "kill", "leader"),
            (7, "restart", "it"),
        ),
        12,
    ),
    Scenario(
        "node-returns-old",
        "an old copy of a node's folder is put back, and a quorum would need it; then its store is set aside",
        (
            (1, "kill", "c1n3"),
            (1.2, "copy", "c1n3"),
            (1.4, "restart", "c1n3"),
            (5, "kill", "c1n3"),
            (5.2, "put_back", "c1n3"),
            (5.4, "restart", "c1n3"),
            (5.5, "kill", "c1n1"),
            (9, "restart", "c1n1"),
            (11, "kill", "c1n3"),
            (11.2, "empty", "c1n3"),
            (11.4, "restart", "c1n3"),
        ),
        14,
    ),
    Scenario(
        "node-twice",
        "a copy of a living node's folder is started beside it, and another node is killed",
        (
            (2, "copy", "c1n3"),
            (3, "start_copy", "c1n3"),
            (5, "kill", "c1n1"),
            (8, "restart", "c1n1"),
            (10, "end_copy"),
        ),
        13,
    ),
]
