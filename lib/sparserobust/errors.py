"""The one kind of error that is shown without a traceback."""

SHOWN = 80  # characters of what somebody gave


class UserError(Exception):
    """A mistake a person can mend; its message is one line that says how."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback; the cell still counts as failed."""
        return [f"{type(self).__name__}: {self}"]


def quoted(given: object) -> str:
    """What somebody gave, for a message of one line: in quotes if it is text, and not longer than a line."""
    try:
        text = repr(given)
    except (RecursionError, ValueError):  # nested too deep; a number of thousands of digits
        text = f"this {type(given).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
