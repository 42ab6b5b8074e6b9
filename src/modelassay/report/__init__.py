"""One report in three forms: JSON, a terminal table, a self-contained HTML page."""

from modelassay.report.html import to_html
from modelassay.report.json import to_dict, to_json
from modelassay.report.terminal import print_report, print_verification

__all__ = ["print_report", "print_verification", "to_dict", "to_html", "to_json"]
