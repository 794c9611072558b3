"""A process that asks as much as it can, whatever becomes of it: ``python -m tests.chaos.flood ADDRESS...``. At SIGTERM it
says how many operations were done."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys

from metastore.client import AsyncClient
from metastore.errors import MetastoreError

TASKS = 96
KEYS = 20_000


async def flood(addresses: list[str]) -> int:
    """Half puts, half gets, of 100 bytes; operations that were done until SIGTERM."""
    done, stop = 0, asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def task(number: int, client: AsyncClient) -> None:
        nonlocal done
        rng, ns = random.Random(number), client.namespace("flood")
        while True:
            key = f"d{rng.randrange(KEYS) % 200}/k{rng.randrange(KEYS)}"
            try:
                if rng.random() < 0.5:
                    await ns.put(key, bytes(100), deadline_s=5)
                else:
                    await ns.get(key, deadline_s=5)
                done += 1
            except MetastoreError:
                await asyncio.sleep(0.01)

    async with AsyncClient(addresses) as client:
        tasks = [asyncio.ensure_future(task(n, client)) for n in range(TASKS)]
        await stop.wait()
        for running in tasks:
            running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
    return done


if __name__ == "__main__":
    print(asyncio.run(flood(sys.argv[1:])), flush=True)
