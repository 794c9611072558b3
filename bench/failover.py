"""How long writes are away when a leader is killed: ``python -m bench.failover --kills 30``.

One cell of three nodes, 8 partitions, two increment-by-compare-and-set writers and two readers a
partition. Each kill is a SIGKILL of one node; for each partition that it led, the time from the
kill to the first write acknowledged after it. At the end every acknowledged write is read back.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path

from bench.measure import percentile, show
from tests.integration.harness import Cluster, Load, keys_by_partition, until

PARTITIONS = 8
#: acknowledgements this soon after the kill may have been on their way before it
IN_FLIGHT_S = 0.02


async def measure(cluster: Cluster, kills: int) -> None:
    async with cluster.client() as client:
        keys = keys_by_partition(client, 2)
        load = Load(client, [k for ks in keys.values() for k in ks])
        running = asyncio.create_task(load.run())
        await asyncio.sleep(2)
        away: list[float] = []
        failed: dict[str, int] = {}
        for number in range(kills):
            names = cluster.names()
            victim = names[number % len(names)]
            led = [p for p, (leader, _) in cluster.leaders().items() if leader == victim]
            when = time.monotonic()
            os.kill(cluster.node(victim)["pid"], 9)
            await asyncio.sleep(4)
            back = load.resumed_after(when + IN_FLIGHT_S, [k for p in led for k in keys[p]])
            away += [max(back[k] for k in keys[p]) + IN_FLIGHT_S for p in led]
            for ack in load.failures(when):
                failed[ack.outcome] = failed.get(ack.outcome, 0) + 1
            await asyncio.to_thread(cluster.verb, "restart", victim)
            await until("everything is led again", lambda: len(cluster.leaders()) == PARTITIONS)
            await asyncio.sleep(1)
        load.stop = True
        await running
        await load.check_all()
    show(
        ["kills", "partitions that lost their leader", "min s", "median s", "p90 s", "max s"],
        [
            [
                kills,
                len(away),
                f"{min(away):.2f}",
                f"{statistics.median(away):.2f}",
                f"{percentile(away, 0.9):.2f}",
                f"{max(away):.2f}",
            ]
        ],
    )
    print(
        f"{len(load.history)} operations; ended with an error: {failed or 'none'}; "
        "every acknowledged write was read back, no version twice"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    kills = parser.parse_args().kills
    with tempfile.TemporaryDirectory(prefix="metastore-bench-") as folder:
        cluster = Cluster.up(Path(folder) / "data", partitions=PARTITIONS)
        try:
            asyncio.run(measure(cluster, kills))
        finally:
            cluster.down()


if __name__ == "__main__":
    main()
