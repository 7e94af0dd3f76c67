"""Runs made of Python objects: nets, data, losses, attacks as they are, beside or instead of names."""
