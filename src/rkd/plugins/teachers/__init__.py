"""Built-in teachers, one file each."""
