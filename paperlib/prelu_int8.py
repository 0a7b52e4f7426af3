"""TFLite's INT8 PRELU, bit for bit (FSRCNN under INT8; paper section 7, Table B).

TFLite's kernel multiplies in 32-bit fixed point and rounds twice, which lands one step beside correct rounding for a
few frequent values. Unlike convolutions, where the accumulator is long, this cannot be neglected; so it is computed.
"""

import math

import torch
from torch import Tensor


def fixed_point(multiplier: float) -> tuple[int, int]:
    """A positive factor as (m, exponent): factor ≈ m·2^(exponent − 31), m a 31-bit integer."""
    fraction, exponent = math.frexp(multiplier)
    m = round(fraction * 2**31)
    return (m // 2, exponent + 1) if m == 2**31 else (m, exponent)


def multiply(values: Tensor, multiplier: float) -> Tensor:
    """Integers times a factor as TFLite does it: doubling high multiplication, then a rounding shift to the right.

    Args:
        values: int64, within int32.
    """
    m, exponent = fixed_point(multiplier)
    product = (values << max(exponent, 0)) * m
    nudge = torch.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = torch.div(product + nudge, 1 << 31, rounding_mode="trunc")
    shift = max(-exponent, 0)
    mask = (1 << shift) - 1
    threshold = (mask >> 1) + (high < 0).long()
    return (high >> shift) + ((high & mask) > threshold).long()


def prelu_steps(q: Tensor, slopes: Tensor, scale_in: float, slope_scale: float, scale_out: float) -> Tensor:
    """PRELU on integers.

    Args:
        q: input in steps of `scale_in` above its zero point, whole numbers, (B, C, H, W).
        slopes: in steps of `slope_scale`, whole numbers, (C,).

    Returns:
        Output in steps of `scale_out` above its zero point, not yet clipped, float like `q`.
    """
    whole = q.detach().round().long()
    negative = multiply(whole * slopes.detach().round().long().reshape(1, -1, 1, 1), scale_in * slope_scale / scale_out)
    return torch.where(whole >= 0, multiply(whole, scale_in / scale_out), negative).to(q.dtype)
