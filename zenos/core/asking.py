"""With which token a request came: known where it comes in, wanted where its row is written.

What lies between acts on somebody's behalf, whatever it was that he showed.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

# The name of a user's token, `task ID` for a task's own, empty for that of the home.
TOKEN: Final = ContextVar("zenos.token", default="")
