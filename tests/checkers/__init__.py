"""Judges of histories: what clients saw, against what a linearizable store may show."""
