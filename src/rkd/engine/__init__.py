"""Faster ways to run a net whose weights stand still: the same function, computed otherwise."""
