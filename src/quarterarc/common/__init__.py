"""Utilities of all packages: errors, registries, random streams, devices and processes, progress bars, text."""
