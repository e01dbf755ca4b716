"""Rename the tensors of vision transformers of the package transformers, such as the hub's facebook/dinov2-small, as in timm."""

import re

import torch
from torch import Tensor

_NAMES = (
    (r"^(?:\w+\.)?embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"^(?:\w+\.)?embeddings\.register_tokens$", "reg_token"),
    (r"^(?:\w+\.)?embeddings\.position_embeddings$", "pos_embed"),
    (r"^(?:\w+\.)?embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:\w+\.)?(?:encoder\.)?layer\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"^(?:\w+\.)?layernorm\.", "norm."),
)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict under timm's names; one without transformers' names is returned as it is."""
    if not any(key.endswith("embeddings.patch_embeddings.projection.weight") for key in state):
        return state
    found = {}
    for key, value in state.items():
        for pattern, name in _NAMES:
            key = re.sub(pattern, name, key)
        found[key] = value
    for key in [key for key in found if key.endswith(".attn.query.weight") or key.endswith(".attn.query.bias")]:
        parts = [found.pop(key.replace(".query.", f".{part}."), None) for part in ("query", "key", "value")]
        found[key.replace(".query.", ".qkv.")] = torch.cat([part for part in parts if part is not None])
    return found
