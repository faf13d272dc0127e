"""Tests on a real cluster: `make e2e`, which sets LLM_API_E2E; they install things, so KUBECONFIG alone starts none.

The environment says which cluster and how images get there; docs/kubernetes.md lists it.
"""

import os
from collections.abc import Iterator

import pytest

from tests.e2e.cluster import Cluster, Namespace
from tests.e2e.image import LOAD, image_on

if os.environ.get("LLM_API_E2E") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """Give the cluster that KUBECONFIG names."""
    assert os.environ.get("KUBECONFIG"), "KUBECONFIG has to name a cluster on which things may be installed"
    found = Cluster()
    found.kubectl("get", "--raw", "/readyz")
    return found


@pytest.fixture(scope="session")
def image(cluster: Cluster) -> str:
    """Build the image and load it into the cluster, unless LLM_API_E2E_IMAGE names one that is there; give its name."""
    return os.environ.get("LLM_API_E2E_IMAGE") or image_on(cluster)


@pytest.fixture(scope="session")
def load_image(cluster: Cluster) -> str:
    """The same for the load tests' image, with LLM_API_E2E_LOAD_IMAGE."""
    return os.environ.get("LLM_API_E2E_LOAD_IMAGE") or image_on(cluster, LOAD)


@pytest.fixture
def namespace(cluster: Cluster, image: str) -> Iterator[Namespace]:
    """Give an empty namespace that admits restricted pods alone; remove it with all that is in it."""
    with cluster.namespace(image) as made:
        yield made
