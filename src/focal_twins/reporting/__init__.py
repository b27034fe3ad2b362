"""Makes pages about runs: the report of one run (run_report) and the comparison of several (comparison)."""
