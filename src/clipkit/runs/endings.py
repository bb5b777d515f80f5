"""How a run ends when it does not end by itself: told to stop, or with a process that has failed."""

__all__ = ["LOST", "Failed", "Interrupted"]

LOST = 3  # the exit status of a process that only says that another is gone


class Interrupted(BaseException):
    """The run was asked to stop (Ctrl-C, SIGTERM). Carries the message for the person and the exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Failed(Exception):
    """A process that this one had started has failed. Carries its exit status, and what it has not said itself."""

    def __init__(self, message: str | None, status: int) -> None:
        super().__init__(message, status)  # both: it is pickled on its way from a launcher's job
        self.message, self.status = message, status
