"""Hostile input to every port of real processes: each is refused, costs little, and hurts nobody."""
