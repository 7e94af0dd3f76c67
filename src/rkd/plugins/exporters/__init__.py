"""Formats that a student can be exported to."""
