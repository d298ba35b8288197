"""What every other room uses: errors, registries, random streams, devices and processes, progress bars, text."""
