"""torch's multi-head attention with some of its heads removed, which its own class has no way to say."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NarrowAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` with fewer heads than its width has room for; made by `narrow`, never built.

    It gives no attention weights. `nn.TransformerEncoderLayer` then takes its plain path, because the fast one takes the
    number of heads from the width.
    """

    # The parent's own arguments.
    def forward(  # noqa: PLR0913
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Answer like the parent, for the heads that are left: (answers, None)."""
        del need_weights, average_attn_weights
        if not self.batch_first:
            query, key, value = (one.transpose(0, 1) for one in (query, key, value))
        weights = self.in_proj_weight.chunk(3)
        bias: Tensor | None = self.in_proj_bias
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        parts = [F.linear(one, w, b) for one, w, b in zip((query, key, value), weights, biases, strict=True)]
        q, k, v = (one.reshape(*one.shape[:-1], -1, self.head_dim).transpose(1, 2) for one in parts)
        mask = _joined(attn_mask, key_padding_mask, q.dtype)
        found = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0, is_causal and mask is None)
        answer = self.out_proj(found.transpose(1, 2).flatten(2))
        return (answer if self.batch_first else answer.transpose(0, 1)), None


def narrow(attention: nn.MultiheadAttention) -> None:
    """Make an attention compute with the heads that its weights have left; nothing if all are there."""
    left, head = attention.in_proj_weight.shape[0] // 3, attention.head_dim
    if isinstance(attention, NarrowAttention) or left == attention.embed_dim:
        return
    if attention.bias_k is not None or attention.add_zero_attn or left % head:
        raise ValueError(f"heads go as a whole and without added keys, {left} numbers of heads of {head} are left; keep this attention.")
    attention.__class__ = NarrowAttention
    # The switch by which the parent's callers know that the fast path is not for it.
    attention._qkv_same_embed_dim = False


def _joined(mask: Tensor | None, padding: Tensor | None, kind: torch.dtype) -> Tensor | None:
    """Put both masks into one that is added to the scores."""
    parts = []
    if mask is not None:
        parts.append(_added(mask if mask.ndim < 3 else mask.unsqueeze(1), kind))
    if padding is not None:
        parts.append(_added(padding[:, None, None, :], kind))
    return None if not parts else parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _added(mask: Tensor, kind: torch.dtype) -> Tensor:
    return torch.zeros(mask.shape, dtype=kind).masked_fill(mask, float("-inf")) if mask.dtype == torch.bool else mask.to(kind)
