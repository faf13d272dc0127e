# One image, three commands: `serve` (the default), `worker` and `simulate`. One process in each container.
#
#   docker build --build-arg VERSION=0.1.0 --build-arg REVISION=$(git rev-parse HEAD) --tag llm-api:0.1.0 .
#
# The base may be named with its digest: --build-arg PYTHON_IMAGE=docker.io/library/python:3.13-slim@sha256:…
ARG PYTHON_IMAGE=docker.io/library/python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
# Bytecode that is held against its source by a hash, not by a time: the same sources make the same bytes, whenever they are
# built, and whatever copies the files, nothing is compiled anew at each start.
ENV PYC_INVALIDATION_MODE=CHECKED_HASH \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1 \
    UV_PYTHON_DOWNLOADS=never
WORKDIR /app
# What changes seldom comes first: uv as uv.lock names it, with its hash, and then everything that we depend on.
COPY pyproject.toml uv.lock ./
COPY tools/bootstrap_uv.py tools/
RUN python tools/bootstrap_uv.py /usr/local/bin/uv
RUN uv sync --frozen --no-dev --extra postgres --no-install-project
COPY README.md LICENSE ./
COPY service service
# Not editable: the sources stay behind, and bytecode is compiled where it is run from.
RUN uv sync --frozen --no-dev --extra postgres --no-editable
# The time of every file in the result, in seconds since 1970. In uv_cache.json uv notes for itself when it built,
# and everybody may write to its lock.
ARG SOURCE_DATE_EPOCH=0
RUN sed --in-place /uv_cache.json,/d .venv/lib/python*/site-packages/llm_api-*.dist-info/RECORD \
    && rm .venv/lib/python*/site-packages/llm_api-*.dist-info/uv_cache.json \
    && rm --force .venv/.lock \
    && mkdir --parents /result/app \
    && mv .venv /result/app/ \
    && find /result -exec touch --no-dereference --date="@${SOURCE_DATE_EPOCH}" {} +

# The load tests (docs/load.md), an image of their own: what serves has no locust in it.
#
#   docker build --target load --tag llm-api-load:0.1.0 .
FROM ${PYTHON_IMAGE} AS build-load
ENV PYC_INVALIDATION_MODE=CHECKED_HASH \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1 \
    UV_PYTHON_DOWNLOADS=never
WORKDIR /app
COPY pyproject.toml uv.lock ./
COPY tools/bootstrap_uv.py tools/
RUN python tools/bootstrap_uv.py /usr/local/bin/uv
RUN uv sync --frozen --no-dev --extra load --no-install-project
COPY load load
ARG SOURCE_DATE_EPOCH=0
RUN python -m compileall -q --invalidation-mode checked-hash load \
    && rm --force .venv/.lock \
    && mkdir --parents /result/app \
    && mv .venv load /result/app/ \
    && find /result -exec touch --no-dereference --date="@${SOURCE_DATE_EPOCH}" {} +

FROM ${PYTHON_IMAGE} AS load
COPY --from=build-load /result /
# Pages of results keep what matplotlib notes for itself in /tmp: the root is read-only.
ENV MPLCONFIGDIR=/tmp \
    PATH=/app/.venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app
USER 65532:65532
STOPSIGNAL SIGTERM
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="llm-api-load" \
      org.opencontainers.image.description="Load tests of llm-api" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENTRYPOINT ["locust", "--locustfile", "/app/load/locustfile.py"]
CMD ["--help"]

# The last, which is built where no target is named.
FROM ${PYTHON_IMAGE} AS service
# Owned by root and not writable: who runs it cannot change it.
COPY --from=build /result /
# Bytecode is there already, and could not be written on a read-only root.
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    LLM_API_PROFILE=production \
    LLM_API_SERVER__HOST=0.0.0.0
WORKDIR /app
# A number, by which the kubelet can tell that it is not root.
USER 65532:65532
# The API, its metrics, and what `simulate` listens on.
EXPOSE 8000 9090 9000
STOPSIGNAL SIGTERM
# Last, since they change with every commit.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="llm-api" \
      org.opencontainers.image.description="One production HTTP API in front of large language models" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# No shell and no init between the signal and the process, which handles it and starts no others.
ENTRYPOINT ["llm-api"]
CMD ["serve"]
