"""The application for ASGI servers (``uvicorn service.asgi:app``): the only module-level one."""

import os

from service.app import create_app
from service.config import load_settings

app = create_app(load_settings({}, os.environ))
