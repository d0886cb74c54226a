"""The report of a run: one page that opens offline, from scores, figures and what jobs left beside them."""

from ctdb.report.page import write

__all__ = ["write"]
