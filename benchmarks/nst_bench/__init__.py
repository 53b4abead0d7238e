"""Every measurement, and its report: the served model against the optimisation that it replaces."""
