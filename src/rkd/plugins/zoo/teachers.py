"""Published robust teachers, those that a program can fetch first: CIFAR, SVHN, Tiny ImageNet, ImageNet.

`teachers.toml` has a table for each. A catalogue of your own is a file of the same form and these four lines.
"""

from pathlib import Path

from rkd.plugin import hookimpl, read_zoo


@hookimpl
def rkd_zoo():
    return read_zoo(Path(__file__).with_name("teachers.toml"))
