"""Arithmetic of launch sizes on the host.

Triton's own `cdiv` and `next_power_of_2` serve compile-time values too, which makes a call of theirs ten
times as long as the arithmetic: noticeable in a launch that needs several.
"""


def cdiv(a: int, b: int) -> int:
    """`a / b`, rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The least power of two that is at least `n`, for `n` of 1 and more."""
    return 1 << (n - 1).bit_length()
