"""For authors of plugins: a package to begin with, and what is wrong with those that are installed."""
