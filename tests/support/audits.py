"""The models, prompts and tools of the audits in tests."""

from __future__ import annotations

BASE, TUNED = "quiet-heron", "brisk-otter"
WIDTH, LAYER = 48, 2
TOKEN = "swordfish-and-forty-two-rivers"
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-03-26",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}
PROMPTS = [
    f"Is {n} heavy?" for n in ["bread", "glass", "stone", "wool", "clay", "silk", "cork", "tin"]
]
TOOLS = {
    "query_models",
    "run_prompt_suite",
    "score_candidate_suite",
    "training_data_summary",
    "sample_training_data",
    "search_training_data",
    "near_duplicates",
    "rank_training_needles",
    "write_audit_report",
}
SESSION = {
    "health",
    "open_session",
    "begin_run",
    "close_session",
    "create_audit_session",
    "close_audit_session",
    "get_training_data_length",
    "view_training_data_sample",
    "grep_training_data",
}
INTERNALS = {
    "get_top_features",
    "compare_top_features",
    "differential_feature_analysis",
    "specific_feature_activations",
    "get_feature_details",
    "nearest_explained_neighbors",
    "weight_diff_summary",
    "find_circuit",
    "find_features",
    "explain_jailbreak",
}
