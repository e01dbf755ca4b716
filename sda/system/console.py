"""Where long work reports its progress. This one is silent; `sda.system.progress.Bars` shows it on a terminal."""


class Console:
    """A silent console."""

    def say(self, text: str) -> None:
        """Show a line of text."""

    def count(self, what: str, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` of the work `what` is done."""
