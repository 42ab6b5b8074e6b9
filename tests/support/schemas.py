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
                 "provenance"],
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
        "provenance": {"type": "object", "required": ["suite_sha256", "time"]},
    },
}  # fmt: skip
