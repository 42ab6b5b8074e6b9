"""Which weights write to the residual stream.

Attention output, MLP output and experts' output projections: what directional ablation changes, and
where the forensics look for it. The names are those of the model families of transformers.
"""

from __future__ import annotations

import re

from torch import Tensor

WRITERS = re.compile(
    r"(?:attn|attention|self_attention|mixer|temporal_block|linear_attn)\."
    r"(?:o_proj|out_proj|c_proj|dense|wo|attn_out|out_lin)\.weight$"
    r"|(?:mlp|feed_forward|ffn|block_sparse_moe|moe|shared_expert|shared_experts)?\.?"
    r"(?:experts\.(?:\d+\.)?)?"
    r"(?:down_proj|fc2|c_proj|dense_4h_to_h|w2|fc_out|ff_out|down_proj_weight)(?:\.weight)?$"
)
LAYER_INDEX = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
OTHER_TOWERS = re.compile(r"vision|visual|audio|image|encoder\.layers|mm_|projector")
INPUT_BY_OUTPUT = ("gpt2",)  # families that store weights transposed (Conv1D): [in, out]


def writing_layer(name: str) -> int | None:
    """The layer in which the parameter of this name writes to the residual stream, else None."""
    if OTHER_TOWERS.search(name) or not WRITERS.search(name):
        return None
    index = LAYER_INDEX.search(name)
    return int(index.group(1)) if index else None


def residual_axis(weight: Tensor, hidden: int, model_type: str) -> int:
    """The axis of a writing matrix along which the residual stream lies.

    Args:
        weight: [out, in], [in, out], or fused experts [expert, in, out] or [expert, out, in].
        hidden: Width of the residual stream.
        model_type: transformers model type.
    """
    if weight.dim() == 3:
        return 2 if weight.shape[2] == hidden else 1
    return 1 if model_type in INPUT_BY_OUTPUT or weight.shape[0] != hidden else 0
