"""From an operation to its answer: who leads, which connection, when to retry."""
