"""The twins of the asynchronous classes, for threads: the same methods, without ``await``. ``tools/blocking.py`` makes them."""
