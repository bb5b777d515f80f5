"""The one error that speaks to people: what was found, where, what was expected, what to do."""

__all__ = ["UserError"]


class UserError(ValueError):
    """A mistake that the person at the keyboard can mend; commands print it without a traceback and exit with 2."""
