"""`python -m rkd`: the command line, also under torchrun."""

import os
import sys
from pathlib import Path

# `-m` puts the current folder first on Python's path. Whoever looks at a stranger's run from within its folder shall
# not import a `torch.py` that lies there.
if sys.path and sys.path[0] in ("", os.getcwd()) and Path(sys.path[0]).resolve() != Path(__file__).resolve().parents[1]:
    del sys.path[0]

from rkd.cli import main

main()
