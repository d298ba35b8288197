"""Sampling: plans, trajectories, images from seeds, sample folders, and grids tuned to a network."""
