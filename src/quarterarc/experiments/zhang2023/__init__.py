"""Zhang, Ehinger & Drummond (2023): schedule, heads, loss and sampler on the quarter arc."""
