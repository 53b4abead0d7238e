"""How the documents of the larger suites are drawn: their tables and plots."""
