# The coordinator: REST for people, gRPC for sites, sums of masked vectors. No torch; PostgreSQL and S3 drivers.
#
#   docker build --file deploy/docker/coordinator.Dockerfile --tag wardround/coordinator:0.1.0 .
#   docker run --read-only --tmpfs /tmp --volume wardround:/srv/wardround wardround/coordinator:0.1.0
#
# To pin the base by digest: `docker buildx imagetools inspect python:3.11-slim-bookworm` prints it;
# then --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:...
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
WORKDIR /build
COPY deploy/docker/build/prune_base.sh deploy/docker/build/settle.sh ./
RUN sh settle.sh "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
    && sh prune_base.sh

FROM ${PYTHON_IMAGE} AS packages
WORKDIR /build
COPY deploy/docker/build/prune_packages.sh deploy/docker/build/settle.sh deploy/docker/locks/coordinator.txt ./
# Every file is compared with the digest in the lock; nothing is built from source.
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip /opt/wardround/venv \
    && python3 -m pip --python /opt/wardround/venv/bin/python install --no-compile --require-hashes --only-binary :all: \
        --requirement coordinator.txt \
    && echo /opt/wardround/app > /opt/wardround/venv/lib/python3.11/site-packages/wardround.pth \
    && sh prune_packages.sh /opt/wardround/venv \
    && sh settle.sh /opt/wardround

# What builds the project's wheel and lists contents; the same stage in all three files, so that it is built once.
FROM ${PYTHON_IMAGE} AS tools
WORKDIR /build
COPY deploy/docker/locks/build.txt deploy/docker/locks/sbom.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv --without-pip tools \
    && python3 -m pip --python tools/bin/python install --require-hashes --only-binary :all: \
        --requirement build.txt --requirement sbom.txt

FROM tools AS wheel
COPY . source
RUN python3 -m pip --python tools/bin/python wheel --no-deps --no-build-isolation --wheel-dir wheels ./source

FROM packages AS project
COPY --from=wheel /build/wheels wheels
COPY LICENSE deploy/docker/build/rootfs.sh ./
RUN python3 -m pip --python /opt/wardround/venv/bin/python install --no-compile --no-deps --no-index \
        --target /opt/wardround/app --find-links wheels wardround \
    && sh rootfs.sh /opt/wardround/app /srv/wardround /srv/handover /srv/secrets:0750

# What the image holds, and that none of it comes under a licence that it must not ship.
FROM packages AS sbom
COPY --from=tools /build/tools tools
COPY --from=base /var/lib/dpkg/status ./
COPY --from=project /rootfs/opt/ /opt/
COPY deploy/scripts/make_sbom.py ./
ARG VERSION=0.1.0
RUN mkdir -p /sbom/usr/share/wardround \
    && tools/bin/cyclonedx-py environment /opt/wardround/venv/bin/python --output-reproducible --spec-version 1.6 \
        --no-validate --output-file python.json \
    && tools/bin/python make_sbom.py --python python.json --dpkg-status status --image wardround/coordinator \
        --image-version "${VERSION}" --out /sbom/usr/share/wardround/sbom.cdx.json \
    && sh settle.sh /sbom

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Wardround coordinator" \
      org.opencontainers.image.description="Schedules rounds among hospitals and computes secure sums; it never sees a site's update." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="Wardround"
# The base, pruned: a layer above it would hide what was taken out, and still ship it.
# hadolint ignore=DL3067
COPY --from=base / /
COPY --from=packages /opt/ /opt/
COPY --from=project /rootfs/ /
COPY --from=sbom /sbom/ /
ENV PATH=/opt/wardround/app/bin:/opt/wardround/venv/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /srv/wardround
USER 10001:10001
EXPOSE 8443 8444 8445 8446 8447
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["wardround-coordinator", "doctor", "--live", "--config", "/srv/wardround/coordinator.yaml"]
ENTRYPOINT ["wardround-coordinator"]
CMD ["serve", "--config", "/srv/wardround/coordinator.yaml"]
