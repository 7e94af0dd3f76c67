"""Commands that look something up: what there is, what it is, how it is cited."""
