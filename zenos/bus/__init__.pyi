from zenos.bus.aio import AsyncBus as AsyncBus
from zenos.bus.aio import connect_async as connect_async
from zenos.bus.bodies import ArrayBuffer as ArrayBuffer
from zenos.bus.bodies import Encoded as Encoded
from zenos.bus.codec import Codec as Codec
from zenos.bus.codec import register as register
from zenos.bus.sync import Bus as Bus
from zenos.bus.sync import connect as connect
