"""Is this the model it claims to be? Comparison of a model with a baseline."""

from modelassay.verification.verifying import conclude, find_baseline, verify, verify_files
from modelassay.verification_report import Kind, VerificationReport

__all__ = ["Kind", "VerificationReport", "conclude", "find_baseline", "verify", "verify_files"]
