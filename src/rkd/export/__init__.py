"""Trained students as files that run without rkd, and what is left of their robustness there."""
