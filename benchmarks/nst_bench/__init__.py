"""Measurements and their reports: the served model against the optimisation that it replaces."""
