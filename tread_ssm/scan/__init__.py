"""Selective scan and causal convolution along any visiting order, with several backends."""

from tread_ssm.scan.dispatch import BACKENDS, causal_conv, choose_backend, selective_scan

__all__ = ["BACKENDS", "causal_conv", "choose_backend", "selective_scan"]
