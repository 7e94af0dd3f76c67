"""How long a step takes, and on which machine."""
