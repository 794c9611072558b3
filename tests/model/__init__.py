"""The replication rules as a small model, explored exhaustively within stated bounds."""
