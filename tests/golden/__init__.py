"""Golden bytes: what every version has written, so that the next one reads it (``python -m tests.golden``)."""
