"""How things lie on disk: atomic files, picture files, run folders, checkpoints."""
