"""The report: one self-contained HTML page about checkpoints or a sweep."""

from llgae_cli.report.page import write_report

__all__ = ["write_report"]
