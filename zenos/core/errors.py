"""The one tree of errors.

A class says *what kind* of failure it is (its `code`); its docstring is the default message.
Messages begin with "cannot" and say what was wrong and what to do. `api/errors.py` maps codes to
HTTP statuses and `cli/errors.py` maps them to exit codes; nothing else does.
"""

from __future__ import annotations

from typing import ClassVar, Final

KEY_TAKEN: Final = "cannot use that Idempotency-Key again for another request: send a new key"


class ZenosError(Exception):
    """cannot go on: an internal error; the daemon's log has the details"""

    code: ClassVar[str] = "internal"
    param: str | None = None  # the request's field that is at fault, where that is known

    def __init__(self, message: str = "", *, retry_after_s: float | None = None) -> None:
        text = message or (type(self).__doc__ or "").strip()
        super().__init__(text)
        self.message = text
        self.retry_after_s = retry_after_s


class InvalidError(ZenosError):
    """cannot accept this request: it is not valid"""

    code = "invalid"


class HandleError(InvalidError):
    """cannot use this handle: it does not describe the shared memory that came with it"""


class ContextLengthError(InvalidError):
    """cannot fit the prompt: it is longer than the model's context; shorten it"""

    code = "context_length_exceeded"  # OpenAI's clients know it by this


class UnfittableError(InvalidError):
    """cannot ever fit: no node is large enough"""

    code = "unfittable"


class NotFoundError(ZenosError):
    """cannot find it"""

    code = "not_found"


class ConflictError(ZenosError):
    """cannot do that in the present state"""

    code = "conflict"


class RefusedError(ZenosError):
    """cannot allow that"""

    code = "refused"


class QuotaError(RefusedError):
    """cannot submit: the user or the project would have more than it may"""

    code = "quota"


class NumericsError(RefusedError):
    """cannot go on with other numerics than those that the run began with"""

    code = "numerics"


class UnauthorizedError(ZenosError):
    """cannot let you in: send the token as 'Authorization: Bearer TOKEN'"""

    code = "unauthorized"


class ExpiredError(UnauthorizedError):
    """cannot let you in: that token has expired; ask whoever runs this daemon for another"""

    code = "expired"


class TooLargeError(ZenosError):
    """cannot take a request that large"""

    code = "too_large"


class BusyError(ZenosError):
    """cannot take more at the moment: try again shortly"""

    code = "busy"


class UnavailableError(ZenosError):
    """cannot answer at the moment: try again shortly"""

    code = "unavailable"


class DeadlineError(ZenosError):
    """cannot finish in time: the deadline has passed"""

    code = "deadline"


class NoDaemonError(ZenosError):
    """cannot reach the daemon: start it with 'zenos up'"""

    code = "no_daemon"


class StorageError(ZenosError):
    """cannot read or write zenos' own files"""

    code = "storage"


class TransitionError(ZenosError):
    """cannot make that transition: it is not in the table of legal ones"""

    code = "transition"


class WorkerError(ZenosError):
    """cannot finish the task: its worker failed"""

    code = "worker"


class LaneError(WorkerError):
    """cannot finish the thread: the process that it ran on has died"""


class RankError(WorkerError):
    """cannot go on together: another rank has ended, or is not where this one is"""

    code = "rank"


def _tree(root: type[ZenosError]) -> dict[str, type[ZenosError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        for code, kind in _tree(child).items():
            # A class elsewhere that has its parent's code is no kind of its own.
            found.setdefault(code, kind)
    return found


def from_code(code: str, message: str, *, retry_after_s: float | None = None) -> ZenosError:
    """The error of that code, as the other side of a socket raised it."""
    return _tree(ZenosError).get(code, ZenosError)(message, retry_after_s=retry_after_s)
