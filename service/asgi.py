"""The application for ASGI servers (``uvicorn service.asgi:app``): the only module-level one."""

import os
from functools import partial

from service.app import create_app
from service.config.reload import SettingsSource
from service.wiring import open_resources

_source = SettingsSource({}, os.environ)
app = create_app(_source.load(), partial(open_resources, source=_source))
