"""How the application is served: by uvicorn in this process, or by several processes under gunicorn."""
