"""A matrix of runs, and runs as processes and jobs."""
