# The coordinator: REST for people, gRPC for sites, sums of masked vectors. No torch; PostgreSQL and S3 drivers.
#
#   docker build --file deploy/docker/coordinator.Dockerfile --tag wardround/coordinator:0.1.0 .
#   docker run --read-only --tmpfs /tmp --volume wardround:/srv/wardround wardround/coordinator:0.1.0
#
# To pin the base by digest: `docker buildx imagetools inspect python:3.11-slim-bookworm` prints it;
# then --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:...
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS packages
WORKDIR /build
COPY deploy/docker/settle.sh deploy/docker/locks/coordinator.txt ./
# Every file is compared with the digest in the lock; nothing is built from source.
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip /opt/wardround/venv \
    && python3 -m pip --python /opt/wardround/venv/bin/python install --no-compile --require-hashes --only-binary :all: \
        --requirement coordinator.txt \
    && echo /opt/wardround/app > /opt/wardround/venv/lib/python3.11/site-packages/wardround.pth \
    && sh settle.sh /opt/wardround

FROM packages AS project
COPY deploy/docker/locks/build.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip tools \
    && python3 -m pip --python tools/bin/python install --require-hashes --only-binary :all: --requirement build.txt
COPY . source
RUN python3 -m pip --python tools/bin/python wheel --no-deps --no-build-isolation --wheel-dir wheels ./source \
    && python3 -m pip --python /opt/wardround/venv/bin/python install --no-compile --no-deps --no-index \
        --target /opt/wardround/app --find-links wheels wardround \
    && sh source/deploy/docker/rootfs.sh /opt/wardround/app \
    && sh settle.sh /rootfs

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Wardround coordinator" \
      org.opencontainers.image.description="Schedules rounds among hospitals and computes secure sums; it never sees a site's update." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="Wardround"
COPY --from=packages /opt/ /opt/
COPY --from=project /rootfs/ /
COPY --from=project --chown=10001:10001 /state/ /srv/
ENV PATH=/opt/wardround/app/bin:/opt/wardround/venv/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /srv/wardround
USER 10001:10001
EXPOSE 8443 8444 8445 8446 8447
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["wardround-coordinator", "doctor", "--live", "--config", "/srv/wardround/coordinator.yaml"]
ENTRYPOINT ["wardround-coordinator"]
CMD ["serve", "--config", "/srv/wardround/coordinator.yaml"]
