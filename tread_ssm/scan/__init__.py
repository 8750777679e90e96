"""Selective scan, causal convolution and decayed product along any visiting order; their gate."""

from tread_ssm.scan.dispatch import (
    BACKENDS,
    Direction,
    causal_conv,
    choose_backend,
    gated_norm,
    selective_scan,
    ssd,
    ssd_both_ways,
)

__all__ = [
    "BACKENDS",
    "Direction",
    "causal_conv",
    "choose_backend",
    "gated_norm",
    "selective_scan",
    "ssd",
    "ssd_both_ways",
]
