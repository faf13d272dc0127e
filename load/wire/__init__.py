"""Sockets read so cheaply that one worker keeps a thousand streams: no greenlet wakes for a piece of an answer."""
