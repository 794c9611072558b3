"""How a node begins to take part: etcd's word on its store first (R13), then peers and clients."""

from __future__ import annotations

import logging
from typing import Final

from metastore.clock import now_ns
from metastore.coordination.interface import Coordinator
from metastore.coordination.waiting import set_within
from metastore.core.events import Resumed
from metastore.node.node import Node

log = logging.getLogger("metastore.startup")

#: how long etcd may be silent before a node goes on without it (R12)
ETCD_PATIENCE_S: Final = 1.5


async def take_part(node: Node, coordinator: Coordinator) -> bool:
    """Whether the node takes part from here on; when it does not, ``node.identity`` says why. The node listens on its
    addresses already, and accepts no client or peer: a question which process is there is answered, and no other process can have them.

    Nothing is sent to peers or served before etcd has said that this process may, or has not answered for
    ETCD_PATIENCE_S: a restarted owner must go on without it (R12).
    """
    if not node.identity.refused:
        node.begin_run()
        node.control.connect(coordinator)
        await node.control.registration.admit(ETCD_PATIENCE_S)
    if node.identity.refused:
        log.error("this node serves nothing: %s; %s", node.identity.why, node.identity.do)
        await node.control.close()
        return False
    node.start()
    node.control.follow()
    if node.identity.state == "confirmed" and not await set_within(node.control.ready, ETCD_PATIENCE_S):
        log.warning("etcd did not answer with its records; the node goes on with those in its store (R12)")
    # a restarted owner of the newest epoch goes on, whether etcd is there or not
    node.core.handle(now_ns(), Resumed())
    node.ticks.run_effects()
    return True
