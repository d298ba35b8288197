"""Flow maps: images in one to four evaluations, against the samplers of ordinary networks."""
