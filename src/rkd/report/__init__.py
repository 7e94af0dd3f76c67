"""Pages, pictures and tables from run folders. Reads through `rkd.storage.runfolder`, never touches a net.

`write_report(folder)` writes one run's page; `compare(folders)` puts several runs side by side. Pages cost the import
of matplotlib and jinja2, tables do not: whatever makes a page is imported when it is first named.
"""

from typing import TYPE_CHECKING, Any

from ..storage.optional import optional
from .compare import Comparison, compare
from .tables import against_baselines, apart, basis, cells, sizes, to_csv, to_json, to_latex, where

__all__ = [
    "Comparison",
    "Report",
    "against_baselines",
    "apart",
    "basis",
    "build_report",
    "cells",
    "compare",
    "save_report",
    "sizes",
    "to_csv",
    "to_json",
    "to_latex",
    "where",
    "write_comparison",
    "write_report",
]

if TYPE_CHECKING:
    from .pages import Report, build_report, save_report, write_comparison, write_report


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'rkd.report' has no attribute {name!r}")
    optional("matplotlib", "report", "a page with pictures")
    from . import pages

    return getattr(pages, name)
