"""One process of a run by torch.distributed.run: `rank.py RECORDS COMMAND ...`, see `attempts.record`."""

import json
import os
import sys
from pathlib import Path

import torch.distributed

from quarterarc.cli import main

try:
    status = main(sys.argv[2:])
except SystemExit as stopped:
    status = stopped.code if isinstance(stopped.code, int) else 0
if sys.argv[1]:
    connected = torch.distributed.is_initialized()
    value = {"status": status, "processes": torch.distributed.get_world_size() if connected else 1}
    Path(sys.argv[1], f"{os.environ['RANK']}.json").write_text(json.dumps(value), encoding="utf-8")
sys.exit(status)
