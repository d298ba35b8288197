"""Zhang, Ehinger & Drummond (2023): the arc, both estimates, the gradient loss and the gradient sampler."""
