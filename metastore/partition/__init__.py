"""One partition on a node, without I/O: its operations, its entries, its watches, its split; over the interfaces in ``ports``."""
