from zenos import bus as bus
from zenos import task as task
from zenos import threads as threads
from zenos.client import connect as connect
from zenos.client import connect_async as connect_async

__version__: str
