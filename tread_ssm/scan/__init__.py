"""Selective scan, causal convolution and decayed product along any visiting order; their gate."""

from tread_ssm.scan.dispatch import (
    BACKENDS,
    causal_conv,
    choose_backend,
    gated_norm,
    selective_scan,
    ssd,
)

__all__ = ["BACKENDS", "causal_conv", "choose_backend", "gated_norm", "selective_scan", "ssd"]
