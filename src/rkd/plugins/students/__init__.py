"""Built-in students, one file each."""
