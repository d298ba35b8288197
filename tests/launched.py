"""One process of a distributed run in the tests: runs the command line, and records the number of processes.

python -m torch.distributed.run --standalone --nproc_per_node 2 tests/launched.py FOLDER COMMAND ... [THEN COMMAND ...]
"""

import json
import os
import sys
from pathlib import Path

import torch.distributed

from quarterarc.cli import main

words, status = sys.argv[2:], 0
while words and not status:
    last = words.index("THEN") if "THEN" in words else len(words)
    status, words = main(words[:last]), words[last + 1 :]
connected = torch.distributed.is_initialized()
record = {"status": status, "processes": torch.distributed.get_world_size() if connected else 1}
Path(sys.argv[1], f"{os.environ['RANK']}.json").write_text(json.dumps(record), encoding="utf-8")
sys.exit(status)
