"""The commands `nst train`, `nst optimize` and `nst texture`."""
