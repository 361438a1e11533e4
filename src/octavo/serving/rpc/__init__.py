"""gRPC on the event loop: HTTP/2 as gRPC's clients speak it (plaintext, prior knowledge), parsed by hand.

It exists for its speed: a call costs a third of what the general library's asyncio server takes. It knows no model and
no message type; a server is given `Method`s that turn bytes into bytes.
"""

from octavo.serving.rpc.call import Call, Method
from octavo.serving.rpc.limits import Limits
from octavo.serving.rpc.server import GrpcServer
from octavo.serving.rpc.status import Code, Refused

__all__ = ["Call", "Code", "GrpcServer", "Limits", "Method", "Refused"]
