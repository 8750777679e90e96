"""Random numbers as a pure function of (seed, number, purpose).

Nothing here keeps state, so step 7 of a run has the same numbers in an uninterrupted run,
after a resume, and on any number of processes.
"""

from __future__ import annotations

import hashlib

import torch

_MASK = 0xFFFFFFFF


def generator(seed: int, number: int, purpose: str) -> torch.Generator:
    """A CPU generator for one step (epoch, image ...) of one purpose of a run.

    torch's CPU generator looks at the low 32 bits of its seed only. For a given seed and
    purpose the mix below is a permutation of these 32 bits, so no two of 2^32 numbers share a
    state; different seeds and purposes permute differently.

    Args:
        seed: Of the run.
        number: Of the step; its low 32 bits count.
        purpose: What the random numbers are for.
    """
    digest = hashlib.blake2b(f"{purpose}:{seed}".encode(), digest_size=8).digest()
    first, second = int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")
    mixed = _mix(_mix((number & _MASK) ^ first) ^ second)
    return torch.Generator().manual_seed(mixed)


def _mix(x: int) -> int:
    """MurmurHash3's 32-bit finaliser, a bijection."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)
