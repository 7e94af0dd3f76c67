"""Built-in catalogues of trained teachers."""
