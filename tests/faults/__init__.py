"""Faults put in on purpose, and what must be seen."""
