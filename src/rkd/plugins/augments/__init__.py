"""Augmentations of whole training batches, one per file."""
