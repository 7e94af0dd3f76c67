"""Nets that a run needs first: its teachers, and the student without them; prepared once and kept."""
