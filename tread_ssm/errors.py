"""Errors whose text is the whole message for the user: what, where, the numbers, the remedy."""


class ConfigError(ValueError):
    """Something that the user asked for, or gave, cannot be used."""
