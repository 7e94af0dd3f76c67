"""Plugins that a user names by their file."""

from __future__ import annotations

import random
from pathlib import Path

from rkd.core.errors import RkdError
from rkd.registry.catalog import load_catalog

from .strange import scribbled

BODIES = (
    "raise RuntimeError('at import')",
    "raise SystemExit(3)",
    "print('spam')",
    "import nowhere_to_be_found",
    "1 +",
    "\0",
    "def rkd_losses():\n    raise KeyError('in the hook')",
    "def rkd_losses():\n    return [1]",
    "def rkd_losses():\n    return None",
    "def rkd_losses():\n    return {'<script>': object}",
    "def rkd_losses():\n    return {3: object}",
    "def rkd_losses():\n    return {'x': 3}",
    "def rkd_losses():\n    return {'a\\x1b[31m': object}",
    "def rkd_losses():\n    return {'../../x': object}",
    "def rkd_losses():\n    return {'a' * 9999: object}",
    "def rkd_losses():\n    print('spam')\n    return {'mine': object}",
    "def rkd_losses(nothing_known):\n    return {}",
    "def rkd_losses():\n    return {'rslad': object}",
    "def rkd_loses():\n    return {}",
    "class B(dict):\n    def items(self):\n        raise ValueError\ndef rkd_losses():\n    return B(x=object)",
    "from rkd.plugin import Family\ndef rkd_models():\n    return {'f': Family('(', object, ())}",
    "class M:\n    __doc__ = 3\ndef rkd_losses():\n    return {'odd': M}",
    "import sys\nsys.exit('gone')",
    "def rkd_losses():\n    import sys\n    sys.exit(1)",
)


def plugin_file(rng: random.Random, folder: Path) -> None:
    """A plugin that raises at import or in its hook, returns the wrong type, registers twice, or prints."""
    files = []
    for number in range(rng.randint(1, 2)):
        body = rng.choice(BODIES)
        if "def rkd" in body:
            body = "from rkd.core.hooks import hookimpl\n" + body.replace("def rkd", "@hookimpl\ndef rkd")
        file = folder / rng.choice((f"p{number}.py", "same.py", "<b>.py", "a b.py"))
        content = body.encode()
        file.write_bytes(scribbled(rng, content) if rng.random() < 0.2 else content)
        files.append(file)
    files *= rng.choice((1, 2))
    found = load_catalog(files)
    for entry in found.all():
        entry.summary  # noqa: B018 - `rkd list-plugins` asks for it
    for kind, name in (("loss", "rslad"), ("loss", "mine"), ("model", "wrn10-2"), ("attack", "pgd")):
        try:
            found.find(kind, name)
        except RkdError:
            if name not in ("mine", "rslad"):
                raise AssertionError(f"a strange plugin took {name} away") from None
