from .report import ConceptResult as ConceptResult
from .report import ScanReport as ScanReport
from .scanning import judge as judge
from .scanning import scan as scan
from .verdict import Verdict as Verdict
