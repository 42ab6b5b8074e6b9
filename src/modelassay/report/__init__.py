"""Reports as sections, and the renderers that every product's report goes through."""

from modelassay.report.html import to_html
from modelassay.report.json import to_dict, to_json
from modelassay.report.markdown import to_markdown
from modelassay.report.sections import Column, Report, Section, Status, Table
from modelassay.report.terminal import print_report

__all__ = [
    "Column",
    "Report",
    "Section",
    "Status",
    "Table",
    "print_report",
    "to_dict",
    "to_html",
    "to_json",
    "to_markdown",
]
