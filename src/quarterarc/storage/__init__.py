"""Everything on disk: atomic writes, PNG files, run folders, checkpoints."""
