"""One stream of changes, whichever way it comes."""
