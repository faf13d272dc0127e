"""The HTTP and WebSocket surface: one module for each family of routes."""
