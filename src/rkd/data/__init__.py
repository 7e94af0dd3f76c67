"""Data sets, loaders and what keeps images ready for the device."""
