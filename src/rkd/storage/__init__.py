"""Files: text, weights, run folders, locks. Reads hostile input with bounds, and without pickle."""
