"""The image under test: built, saved and loaded into the cluster by commands that the environment may replace."""

import os
import subprocess
import tempfile
from pathlib import Path

from service import __version__
from tests.e2e.cluster import ROOT, Cluster

NAME = f"docker.io/library/llm-api:{__version__}"
"""What the chart's default values name."""
BUILD = 'docker build --tag "$IMAGE" "$CONTEXT" && docker save --output "$ARCHIVE" "$IMAGE"'
"""Given IMAGE and CONTEXT, leaves an image archive at ARCHIVE."""
LOAD = "kind load image-archive"
"""Followed by the archive's path."""
TIMEOUT_S = 1800


def image_on(cluster: Cluster) -> str:
    """Build and load; return the image's name."""
    del cluster  # KUBECONFIG says which
    build = os.environ.get("LLM_API_E2E_IMAGE_BUILD", BUILD)
    load = os.environ.get("LLM_API_E2E_IMAGE_LOAD", LOAD)
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "image.tar"
        environment = {**os.environ, "IMAGE": NAME, "CONTEXT": str(ROOT), "ARCHIVE": str(archive)}
        # Both are whatever the person who runs this has written.
        for command in (build, f'{load} "$ARCHIVE"'):
            subprocess.run(command, shell=True, env=environment, timeout=TIMEOUT_S, check=True)  # noqa: S602 - see above
    return NAME
