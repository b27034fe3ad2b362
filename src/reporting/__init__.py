"""Pages about runs: what a run came to (run_report), and several beside each other (comparison)."""
