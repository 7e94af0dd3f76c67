"""What an attack maximises, apart from how it searches."""
