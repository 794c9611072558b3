"""Measurements. Each module prints what it measured and how; ``make bench`` runs them all."""
