"""Token and position embeddings, summed in one kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import checks
from kernels.early import early, wait_for_inputs
from kernels.sizes import cdiv, next_power_of_2


@triton.jit(do_not_specialize=["token_ids_ptr", "positions_ptr"])
def embedding_kernel(
    out_ptr,
    token_ids_ptr,
    weight_ptr,
    positions_ptr,
    position_weight_ptr,
    stride_wt,
    stride_pt,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Grid: (tokens, pieces of a row)."""
    token = tl.program_id(0).to(tl.int64)
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < HIDDEN
    if EARLY:
        wait_for_inputs()
    token_id = tl.load(token_ids_ptr + token).to(tl.int64)
    x = tl.load(weight_ptr + token_id * stride_wt + offs, mask=mask)
    if position_weight_ptr is not None:
        position = tl.load(positions_ptr + token).to(tl.int64)
        extra = tl.load(position_weight_ptr + position * stride_pt + offs, mask=mask)
        x = x.to(tl.float32) + extra.to(tl.float32)
    tl.store(out_ptr + token * HIDDEN + offs, x.to(out_ptr.dtype.element_ty), mask=mask)


def embed(
    token_ids: Tensor,
    weight: Tensor,
    positions: Tensor | None = None,
    position_weight: Tensor | None = None,
    *,
    out: Tensor | None = None,
    check: bool = True,
) -> Tensor:
    """Rows of the token embedding, plus rows of the position embedding where the model has one.

    Ids and positions are not checked against the tables: that would need a synchronisation.

    Args:
        token_ids: int32 or int64 `[tokens]`.
        weight: `[vocab, hidden]`, rows contiguous.
        positions: int32 or int64 `[tokens]`, given with `position_weight`.
        position_weight: `[max_positions, hidden]`, rows contiguous.
        out: `[tokens, hidden]`, contiguous, the weight's dtype; allocated when not given.
        check: Check the arguments first.

    Returns:
        `out`.

    Raises:
        ValueError: An argument has the wrong shape, dtype or strides.
    """
    num_tokens, hidden = token_ids.shape[0], weight.shape[1]
    if out is None:
        out = torch.empty(num_tokens, hidden, dtype=weight.dtype, device=weight.device)
    if check:
        checks.index("token_ids", token_ids, num_tokens)
        checks.shaped("out", out, num_tokens, hidden)
        checks.require(out.is_contiguous(), "out must be contiguous")
        together = (positions is None) == (position_weight is None)
        checks.require(together, "positions and position_weight must be given together, or neither")
        if positions is not None:
            checks.index("positions", positions, num_tokens)
        for name, table in (("weight", weight), ("position_weight", position_weight)):
            if table is not None:
                checks.typed(name, table, *checks.FLOATS)
                checks.shaped(name, table, None, hidden)
                checks.rows(name, table)
    block = min(1024, next_power_of_2(hidden))
    embedding_kernel[(num_tokens, cdiv(hidden, block))](
        out,
        token_ids,
        weight,
        positions,
        position_weight,
        weight.stride(0),
        position_weight.stride(0) if position_weight is not None else 0,
        HIDDEN=hidden,
        BLOCK=block,
        **early(weight.device),
    )
    return out
