"""Carries out what a configuration asks for: builds, trains, evaluates, sweeps. Prints nothing."""
