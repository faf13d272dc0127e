"""The programs that these tests run: found, or built from their Go modules where there is a Go.

``python -m tests.chart.tools`` builds what is missing into a cache folder outside the checkout. A test whose program is
not there is skipped, with the reason.
"""

import os
import shutil
import subprocess

from service.config import user_cache_dir

MODULES = {
    "helm": "helm.sh/helm/v3/cmd/helm@v3.19.5",
    "kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0",
    "kube-score": "github.com/zegl/kube-score/cmd/kube-score@v1.20.0",
    "kustomize": "sigs.k8s.io/kustomize/kustomize/v5@v5.7.1",
}
BUILD_TIMEOUT_S = 1800
FOLDER = user_cache_dir() / "tests" / "bin"


def find(name: str) -> str | None:
    """Return the path of a program: the one that the environment names (``HELM``), one on the PATH, or one we built."""
    named = os.environ.get(name.upper().replace("-", "_"))
    if named:
        return named
    built = FOLDER / name
    return shutil.which(name) or (str(built) if built.exists() else None)


def missing(*names: str) -> str | None:
    """Return what to do before a test can run; None if it can."""
    absent = [name for name in names if find(name) is None]
    return f"no {' and no '.join(absent)}: install it, or `python -m tests.chart.tools` (needs Go)" if absent else None


def main() -> None:
    """Build what is missing."""
    go = shutil.which("go")
    environment = {**os.environ, "GOBIN": str(FOLDER), "CGO_ENABLED": "0"}
    for name, module in MODULES.items():
        if find(name) is not None:
            continue
        if go is None:
            print(f"{name} is not here, and neither is Go to build it from {module}", flush=True)
            continue
        print(f"Building {name} from {module}", flush=True)
        done = subprocess.run(
            [go, "install", "-trimpath", module], env=environment, timeout=BUILD_TIMEOUT_S, check=False
        )
        if done.returncode:
            print(f"The tests that need {name} will be skipped", flush=True)


if __name__ == "__main__":
    main()
