"""Derive seeds from names instead of a running generator: the same numbers in any order, on any number of machines."""

from hashlib import sha256


def derive_seed(*names: int | str) -> int:
    """Derive a seed of 63 bits from, e.g., (seed, round, repeat, purpose). Different names give unrelated seeds."""
    digest = sha256("/".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
