"""The one kind of error that is shown without a traceback."""


class UserError(Exception):
    """A mistake a person can mend; its message is one line that says how."""
