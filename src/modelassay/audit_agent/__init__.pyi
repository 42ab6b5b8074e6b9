from .auditing import audit_with_agent as audit_with_agent
from .chat import AgentModel as AgentModel
from .chat import open_agent as open_agent
from .findings import Findings as Findings
from .limits import Prices as Prices
from .limits import RunLimits as RunLimits
from .report import AgentAuditReport as AgentAuditReport
from .running import AgentRun as AgentRun
