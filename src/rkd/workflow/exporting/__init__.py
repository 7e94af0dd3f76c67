"""Exporting a finished run, with the evaluation of what came out."""
