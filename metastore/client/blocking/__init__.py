"""The twins of the asynchronous classes, for threads: the same methods, without ``await``. ``tests/twins.py`` makes them."""
