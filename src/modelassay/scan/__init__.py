"""Is the safety training there?"""

from modelassay.scan.report import ConceptResult, ScanReport
from modelassay.scan.scanning import judge, scan
from modelassay.scan.verdict import Verdict

__all__ = ["ConceptResult", "ScanReport", "Verdict", "judge", "scan"]
