"""The storage node: the shell of sockets, disks and clocks around the pure core."""
