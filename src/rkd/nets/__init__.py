"""Nets behind their normalisation, the student and its modes, weights files."""
