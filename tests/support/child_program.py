"""A server to be run as a child in tests: it answers each connection with its process id."""

import argparse
import asyncio
import os
import sys

from service.providers.child import end_with_parent


async def serve(port: int) -> None:
    """Listen, say where, and go on for ever."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"{os.getpid()}\n".encode())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port)
    sys.stdout.write(f"noise\nready at http://127.0.0.1:{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


def main() -> None:
    """Serve, or fail as asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--fail", default="")
    arguments = parser.parse_args()
    if arguments.fail:
        sys.exit(arguments.fail)
    end_with_parent()
    asyncio.run(serve(arguments.port))


if __name__ == "__main__":
    main()
