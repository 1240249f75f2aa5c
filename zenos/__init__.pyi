from zenos import bus as bus
from zenos import task as task
from zenos import threads as threads
from zenos.calls import call as call
from zenos.calls import map as map  # noqa: A004 - it is what the built-in one is
from zenos.client import connect as connect
from zenos.client import connect_async as connect_async

__version__: str
