from .record import REPORTS as REPORTS
from .record import ReportRecord as ReportRecord
from .record import load_report as load_report
from .record import push_report as push_report
from .record import report_name as report_name
from .record import save_report as save_report
from .record import store_report as store_report
