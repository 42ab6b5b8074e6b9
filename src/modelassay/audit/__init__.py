"""An audit of a fine-tune as tools: for people, scripts and agents that speak MCP."""

from modelassay.audit.config import AuditConfig, Limits, load_config
from modelassay.audit.log import AuditLog, LogCheck, verify_log
from modelassay.audit.session import Audit
from modelassay.audit.tools import Tool, tools_of

__all__ = [
    "Audit",
    "AuditConfig",
    "AuditLog",
    "Limits",
    "LogCheck",
    "Tool",
    "load_config",
    "tools_of",
    "verify_log",
]
