"""Is this the model it claims to be? Comparison of a model with a baseline."""

from modelassay.verification.differences import Kind
from modelassay.verification.report import VerificationReport
from modelassay.verification.verifying import conclude, find_baseline, verify

__all__ = ["Kind", "VerificationReport", "conclude", "find_baseline", "verify"]
