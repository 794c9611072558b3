"""Mutations of the code by hand, and which tests are to notice them: ``make mutants``."""
