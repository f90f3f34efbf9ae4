"""The one kind of error that is shown without a traceback."""


class UserError(Exception):
    """A mistake a person can mend; its message is one line that says how."""

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).splitlines()))  # whatever somebody's words that it repeats look like

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback; the cell still counts as failed."""
        return [f"{type(self).__name__}: {self}"]
