"""Pages, pictures and tables from run folders. Reads through `rkd.storage.runfolder`, never touches a net.

`write_report(folder)` writes one run's page; `compare(folders)` puts several runs side by side. Importing this package
costs the import of matplotlib and jinja2: do so inside the command that needs it.
"""

from .compare import Comparison, compare
from .pages import Report, build_report, save_report, write_comparison, write_report
from .tables import basis, cells, sizes, to_csv, to_json, to_latex, where

__all__ = [
    "Comparison",
    "Report",
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
