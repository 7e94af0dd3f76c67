"""Architectures: one file, one family."""
