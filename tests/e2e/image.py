"""The images under test: built, saved and loaded into the cluster by commands that the environment may replace."""

import os
import subprocess
import tempfile
from pathlib import Path

from service import __version__
from tests.e2e.cluster import ROOT, Cluster

SERVICE, LOAD = "service", "load"
"""The Dockerfile's targets, and what the chart's default values name."""
NAMES = {SERVICE: f"docker.io/library/llm-api:{__version__}", LOAD: f"docker.io/library/llm-api-load:{__version__}"}
BUILD = 'docker build --target "$TARGET" --tag "$IMAGE" "$CONTEXT" && docker save --output "$ARCHIVE" "$IMAGE"'
"""Given TARGET, IMAGE and CONTEXT, leaves an image archive at ARCHIVE."""
LOAD_IMAGE = "kind load image-archive"
"""Followed by the archive's path."""
TIMEOUT_S = 1800


def image_on(cluster: Cluster, target: str = SERVICE) -> str:
    """Build and load a target; return the image's name."""
    del cluster  # KUBECONFIG says which
    build = os.environ.get("LLM_API_E2E_IMAGE_BUILD", BUILD)
    load = os.environ.get("LLM_API_E2E_IMAGE_LOAD", LOAD_IMAGE)
    assert target == SERVICE or "TARGET" in build, "LLM_API_E2E_IMAGE_BUILD has to build the Dockerfile's $TARGET"
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "image.tar"
        environment = {**os.environ, "TARGET": target, "IMAGE": NAMES[target]}
        environment |= {"CONTEXT": str(ROOT), "ARCHIVE": str(archive)}
        # Both are whatever the person who runs this has written.
        for command in (build, f'{load} "$ARCHIVE"'):
            subprocess.run(command, shell=True, env=environment, timeout=TIMEOUT_S, check=True)  # noqa: S602 - see above
    return NAMES[target]
