"""The application without its drain, for ASGI servers: what the tests of the drain compare with."""

import os
from contextlib import nullcontext

from service import app as factory
from service.config import load_settings

setattr(factory, "drained_at_the_end", lambda *_: nullcontext())  # noqa: B010 - nobody else may assign to it
app = factory.create_app(load_settings({}, os.environ))
