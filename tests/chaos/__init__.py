"""Faults on real processes under traffic, judged by what the clients saw.

``python -m tests.chaos`` runs every scenario and writes a report; ``--short`` the set of CI.
"""
