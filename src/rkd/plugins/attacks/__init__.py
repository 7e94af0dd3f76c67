"""Searches for adversarial images. One file, one attack."""
