"""`python -m rkd`: the command line, also under torchrun."""

from rkd.cli import main

main()
