"""What is measured, one file a suite; `nst_bench.suite` says what a suite is."""
