"""Errors that end a command with one sentence."""


class Failure(Exception):
    """Its text says what was found and what was expected."""
