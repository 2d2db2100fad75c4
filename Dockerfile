# deepcac2 as one offline, non-root container, laid out as MHub.ai lays out its models. See docs/container.md.
#
#   docker build -t deepcac2 .
#   docker run --rm --gpus all --network none --user "$(id -u):$(id -g)" \
#       -v "$PWD/in:/app/data/input_data:ro" -v "$PWD/out:/app/data/output_data" deepcac2
#
# CUDA comes with the torch wheel, so a plain Debian is enough; the host brings the driver.
ARG BASE_IMAGE=debian:bookworm-slim
FROM ${BASE_IMAGE}

RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-venv tini \
 && rm -rf /var/lib/apt/lists/*

# The layers below change from the rarest to the most frequent: torch, other dependencies, the package.
ENV PATH=/opt/venv/bin:$PATH
ARG PIP_NO_CACHE_DIR=1
ARG PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt /opt/build/
RUN python3 -m venv /opt/venv \
 && pip install -c /opt/build/constraints.txt torch setuptools
COPY pyproject.toml /opt/build/
RUN cd /opt/build \
 && python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt \
 && pip install -c constraints.txt -r requirements.txt \
 && pip install --no-deps mhubio==0.0.2 segdb==0.0.3 \
 && rm -rf /opt/build

# /app/models/deepcac2 imports as models.deepcac2 (MHub's runner) and, in other processes, as deepcac2.
# /app/data and /app/tmp are where MHub's runner keeps its intermediate files, under any user.
# Any user may read it, whatever the checkout's own modes are; set here, as a later change copies every file.
COPY --chmod=755 . /app/models/deepcac2
RUN pip install --no-deps --no-build-isolation -e /app/models/deepcac2 \
 && rm -rf /app/models/deepcac2/*.egg-info \
 && python -m compileall -q /app/models/deepcac2 \
 && install -d -m 1777 /app/data /app/data/input_data /app/data/output_data /app/tmp

# The weights baked in, where every user finds them: the bundled ones, and any set of weights/manifest.json.
ENV XDG_DATA_HOME=/app/share
ARG WEIGHTS=bundled
RUN /app/models/deepcac2/container/bake-weights "$WEIGHTS" \
 && deepcac2 weights verify

# A user who is in no passwd file has no home and no name; everything that wants one is sent to /tmp.
ENV PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    USER=deepcac2 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="deepcac2" \
      org.opencontainers.image.description="Coronary calcium from chest CT: a DICOM folder in, Agatston score, risk group, DICOM SEG and report out." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
WORKDIR /app
USER 1000:1000
ENTRYPOINT ["/usr/bin/tini", "--", "/app/models/deepcac2/container/entrypoint"]
