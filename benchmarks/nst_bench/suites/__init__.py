"""One module per suite; see `nst_bench.suite`."""
