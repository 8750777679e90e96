"""Selective scan, causal convolution and decayed product along any visiting order."""

from tread_ssm.scan.dispatch import BACKENDS, causal_conv, choose_backend, selective_scan, ssd

__all__ = ["BACKENDS", "causal_conv", "choose_backend", "selective_scan", "ssd"]
