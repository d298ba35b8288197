"""Training objectives, and the variational bound term by term."""
