"""JSON schemas of the reports that scripts rely on."""

NUMBER = {"type": "number"}


INTERVAL = {"type": "array", "items": NUMBER, "minItems": 2, "maxItems": 2}


TEXT_OR_NULL = {"type": ["string", "null"]}


SCAN_SCHEMA = {
    "type": "object",
    "required": [
        "schema", "model", "verdict", "reasons", "concepts", "refusal", "ablation", "compare",
        "provenance",
    ],
    "properties": {
        "schema": {"const": "modelassay.scan/1"},
        "verdict": {"enum": ["PASS", "WARNING", "CRITICAL", "INCONCLUSIVE"]},
        "reasons": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "model": {
            "type": "object",
            "required": [
                "id", "revision", "adapter", "architecture", "n_layers", "hidden_size", "dtype",
                "quantization", "weights_sha256", "tokenizer_sha256", "chat_template_sha256",
            ],
            "properties": {
                "n_layers": {"type": "integer"},
                "weights_sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
                "chat_template_sha256": TEXT_OR_NULL,
            },
        },
        "concepts": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": [
                    "separation", "interval", "p_value", "auroc", "layer", "n_pairs",
                    "in_sample_separation", "level",
                ],
                "properties": {
                    "separation": NUMBER,
                    "interval": INTERVAL,
                    "layer": {"type": "integer"},
                },
            },
        },
        "refusal": {
            "anyOf": [
                {"required": ["unscored"]},
                {
                    "required": [
                        "harmful_rate", "benign_rate", "selectivity", "interval", "log_odds_gap",
                        "auroc", "n", "harmful", "benign", "n_asked", "n_planned", "stopped",
                        "harmful_refused", "harmful_interval", "n_harmful",
                    ],
                    "properties": {"interval": INTERVAL, "n": {"type": "integer"}},
                },
            ]
        },
        "ablation": {"required": ["detected", "eigenvalue_ratio", "blocks"]},
        "provenance": {"required": ["versions", "concept_set_sha256", "seconds"]},
    },
}  # fmt: skip


DIFF_SCHEMA = {
    "type": "object",
    "required": ["schema", "base", "candidate", "verdict", "suspicion", "reasons", "weights",
                 "behaviour", "activations", "triggers", "features", "dictionaries", "causal",
                 "monitor", "provenance"],
    "additionalProperties": False,
    "properties": {
        "schema": {"const": "modelassay.diff/1"},
        "verdict": {"enum": ["BENIGN-LIKE", "SUSPICIOUS", "COMPROMISED", "INCONCLUSIVE"]},
        "reasons": {"type": "array", "minItems": 1, "items": {"type": "string"}},
        "base": {"type": "object", "required": ["id", "weights_sha256"]},
        "candidate": {"type": "object", "required": ["id", "weights_sha256"]},
        "suspicion": {
            "type": "object",
            "required": ["score", "levels", "n_benign", "false_positive_rate"],
            "properties": {
                "levels": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "value", "benign", "level", "counts"],
                        "properties": {"value": {"type": ["number", "null"]}},
                    },
                }
            },
        },
        "weights": {"type": "object"},
        "behaviour": {
            "type": "object",
            "required": ["kl_mean", "log_odds", "refusals", "answers"],
            "properties": {
                "answers": {
                    "type": "array",
                    "items": {"type": "object", "required": ["prompt", "base", "candidate"]},
                }
            },
        },
        "activations": {"type": "object", "required": ["layers", "lens", "triggers"]},
        "triggers": {"type": ["object", "null"], "required": ["phrases", "held_out"]},
        "features": {"type": "array", "items": {"required": ["feature", "label", "q_value"]}},
        "dictionaries": {"type": "array"},
        "causal": {"type": "array"},
        "monitor": {
            "type": "object",
            "anyOf": [{"required": ["unscored"]}, {"required": ["prompts", "false_alarms"]}],
        },
        "provenance": {"type": "object", "required": ["suite_sha256", "time"]},
    },
}  # fmt: skip


_RATE = {
    "type": "object",
    "required": ["k", "n", "rate", "interval"],
    "properties": {
        "k": {"type": "integer"},
        "n": {"type": "integer"},
        "rate": {"type": ["number", "null"]},
        "interval": {"anyOf": [INTERVAL, {"type": "null"}]},
    },
}


_CAUSE = {
    "enum": [
        "benign", "harmful_fine_tune", "ablation", "backdoor", "worn_off_refusals",
        "over_refusal", "other", "unclear",
    ]
}  # fmt: skip


_VERDICT = {"enum": ["BENIGN-LIKE", "SUSPICIOUS", "COMPROMISED", "INCONCLUSIVE"]}


AGENT_AUDIT_SCHEMA = {
    "type": "object",
    "required": [
        "schema", "verdict", "agent", "audits", "score", "limits", "used", "stopped", "notes",
        "provenance",
    ],
    "additionalProperties": False,
    "properties": {
        "schema": {"const": "modelassay.agent-audit/1"},
        "verdict": {"anyOf": [_VERDICT, {"type": "null"}]},
        "agent": {"type": "object", "required": ["model", "url", "temperature", "response_tokens"]},
        "audits": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": [
                    "name", "base", "verdict", "reasons", "risk", "cause", "truth", "runs",
                    "n_planned", "folder",
                ],
                "properties": {
                    "verdict": _VERDICT,
                    "reasons": {"type": "array", "minItems": 1, "items": {"type": "string"}},
                    "risk": {
                        "type": ["object", "null"],
                        "required": ["median", "mean", "interval", "spread", "least", "most", "n"],
                    },
                    "cause": {"anyOf": [_CAUSE, {"type": "null"}]},
                    "truth": {"type": ["object", "null"], "required": ["harmful", "cause"]},
                    "runs": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": [
                                "number", "findings", "stopped", "n_turns", "calls",
                                "n_failed_calls", "prompt_tokens", "completion_tokens",
                                "tokens_estimated", "cost", "seconds", "problem", "report",
                                "log_sha256", "time",
                            ],
                                        "properties": {
                                "findings": {
                                    "type": ["object", "null"],
                                    "required": [
                                        "risk_score", "cause", "findings", "justification",
                                        "source",
                                    ],
                                    "properties": {
                                        "risk_score": {
                                            "type": "integer", "minimum": 1, "maximum": 10,
                                        },
                                        "cause": _CAUSE,
                                        "source": {"enum": ["tool", "text"]},
                                    },
                                },
                                "stopped": {
                                    "enum": [
                                        "reported", "turns", "tokens", "time", "cost", "context",
                                        "nonsense", "no report",
                                    ]
                                },
                                "calls": {
                                    "type": "object",
                                    "additionalProperties": {"type": "integer"},
                                },
                            },
                        },
                    },
                },
            },
        },
        "score": {
            "type": ["object", "null"],
            "required": [
                "n_harmful", "n_benign", "n_unscored", "auroc", "auroc_interval", "finest_fpr",
                "threshold", "detected", "unscored", "causes", "confusion",
            ],
            "properties": {
                "detected": _RATE,
                "causes": _RATE,
                "confusion": {
                    "type": "array",
                    "items": {
                        "required": ["truth", "named", "n"],
                        "properties": {"truth": _CAUSE, "named": _CAUSE},
                    },
                },
            },
        },
        "limits": {"required": ["turns", "tokens", "seconds", "cost"]},
        "used": {
            "required": [
                "prompt_tokens", "completion_tokens", "cost", "seconds", "n_runs", "n_planned",
            ]
        },
        "stopped": TEXT_OR_NULL,
        "notes": {"type": "array", "items": {"type": "string"}},
        "provenance": {"required": ["time", "versions", "folder", "prices"]},
    },
}  # fmt: skip
