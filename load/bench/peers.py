"""Peers from public packages, each in an environment of its own in the user's cache folder, at a pinned version."""

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from service.config import user_cache_dir

INSTALL_TIMEOUT_S = 600


class MissingError(Exception):
    """A target cannot be measured here; says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One package."""

    package: str
    version: str
    kind: str
    """``pypi`` or ``npm``."""
    path: str
    """Of its program, below its folder."""
    extra: str = ""
    override: str = ""
    """A dependency of which any version will do: the pinned one was taken back."""

    def folder(self) -> Path:
        """Return where it is, or would be."""
        return user_cache_dir() / "bench" / f"{self.package.rpartition('/')[2]}-{self.version}"

    def program(self) -> Path:
        """Return the path of what is run; raise ``MissingError`` where it is not there."""
        found = self.folder() / self.path
        if not found.exists():
            raise MissingError(f"{self.package} {self.version} is not installed: python -m load.bench.peers")
        return found

    def install(self) -> None:
        """Install it; raise ``OSError`` or ``SubprocessError`` where that cannot be done."""
        if self.kind == "npm":
            _run(
                [
                    "npm",
                    "install",
                    "--no-audit",
                    "--no-fund",
                    "--prefix",
                    str(self.folder()),
                    f"{self.package}@{self.version}",
                ]
            )
            return
        uv = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
        _run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(self.folder())])
        command = [uv, "pip", "install", "--quiet", "--python", str(self.folder() / "bin" / "python")]
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as overrides:
            overrides.write(self.override)
            overrides.flush()
            if self.override:
                command += ["--overrides", overrides.name]
            _run([*command, f"{self.package}{self.extra}=={self.version}"])


def _run(command: list[str]) -> None:
    subprocess.run(command, timeout=INSTALL_TIMEOUT_S, check=True)  # noqa: S603 - commands of our own


LITELLM = Peer("litellm", "1.109.1", "pypi", "bin/litellm", extra="[proxy]", override="litellm-proxy-extras")
PORTKEY = Peer("@portkey-ai/gateway", "1.15.2", "npm", "node_modules/@portkey-ai/gateway/build/start-server.js")
SGLANG_ROUTER = Peer("sglang-router", "0.3.2", "pypi", "bin/sglang-router")
PEERS = (LITELLM, PORTKEY, SGLANG_ROUTER)


def main() -> None:
    """Install what is missing; say what could not be, and end well: the benchmark tells it as missing."""
    for peer in PEERS:
        try:
            peer.program()
        except MissingError:
            print(f"Installing {peer.package} {peer.version} into {peer.folder()}", flush=True)
            try:
                peer.install()
            except (OSError, subprocess.SubprocessError) as error:
                print(f"It will not be measured: {error}", flush=True)


if __name__ == "__main__":
    main()
