# The platform's images, a target a service, and `worker` for the nodes that train and answer.
#
#   docker build --target gateway .
#   docker build --target gateway --build-arg PYTHON_IMAGE=registry.example/python:3.11-slim-bookworm .
#
# The base has python3 of 3.11 to 3.13. Behind a proxy with a certificate of its own, the build takes that as the secret `ca`. Processes
# run as user 10001 and write to /tmp and /work alone.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS tools
ENV UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_NO_PROGRESS=1
WORKDIR /src
COPY requirements/uv.txt requirements/
RUN --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache/pip \
    if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi; \
    python3 -m venv /tools && /tools/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
# binutils for `strip`, which halves the environments; where no Debian mirror is within reach, they stay larger.
RUN --mount=type=secret,id=ca if [ -s /run/secrets/ca ]; then echo 'Acquire::https::CaInfo "/run/secrets/ca";' >/etc/apt/apt.conf.d/ca; fi; \
    command -v strip >/dev/null || { apt-get -qq update && apt-get -qq install --yes --no-install-recommends binutils >/dev/null; } || true
COPY tools/environment.sh /tools/bin/environment

# The types of proto/, and the code with its bytecode.
FROM tools AS code
COPY requirements/build.txt requirements/
RUN --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache/uv /tools/bin/environment build
COPY proto proto
COPY tools/__init__.py tools/proto.py tools/
RUN /opt/lepton/bin/python -m tools.proto
COPY libs libs
COPY services services
RUN find libs services -name '*_test.py' -delete && rm -rf libs/sdk libs/testing tools proto requirements \
    && python3 -m compileall -q libs services build/proto

# One environment a group of pyproject.toml.
FROM tools AS gateway-environment
COPY requirements/gateway.txt requirements/
RUN --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache/uv /tools/bin/environment gateway

FROM tools AS control-environment
COPY requirements/control.txt requirements/
RUN --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache/uv /tools/bin/environment control

FROM tools AS data-environment
COPY requirements/data.txt requirements/
RUN --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache/uv /tools/bin/environment data

FROM tools AS worker-environment
COPY requirements/worker.txt requirements/
RUN --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache/uv /tools/bin/environment worker

FROM ${PYTHON_IMAGE} AS base
ENV PATH=/opt/lepton/bin:$PATH PYTHONPATH=/app:/app/build/proto PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    LEPTON_PLATFORM_ALIVE_FILE=/tmp/alive LEPTON_PLATFORM_DRAIN_SECONDS=3 \
    LEPTON_DATA_WORK_DIR=/work/data LEPTON_TRAINING_WORK_DIR=/work/training LEPTON_DEPLOYMENT_WORK_DIR=/work/deployment
RUN mkdir /work && chown 10001:10001 /work
WORKDIR /app
USER 10001:10001
# The process touches the file while it is ready and its event loop turns.
HEALTHCHECK --interval=5s --timeout=3s --start-period=120s --retries=3 CMD ["/bin/sh", "-c", "test -n \"$(find /tmp/alive -mmin -0.25)\""]

FROM base AS gateway
COPY --from=gateway-environment /opt/lepton /opt/lepton
COPY --from=code /src /app
ENV LEPTON_GATEWAY_HOST=0.0.0.0 LEPTON_GATEWAY_SPOOL_DIR=/work/gateway
EXPOSE 8080 8081
# The control plane is the same image with one more word.
CMD ["python", "-m", "services.gateway.main"]

FROM base AS control
COPY --from=control-environment /opt/lepton /opt/lepton
COPY --from=code /src /app
EXPOSE 50051

FROM control AS accounts
ENV LEPTON_ACCOUNTS_LISTEN=0.0.0.0:50051
CMD ["python", "-m", "services.accounts.main"]

FROM control AS compute
ENV LEPTON_COMPUTE_LISTEN=0.0.0.0:50051
CMD ["python", "-m", "services.compute.main"]

FROM control AS training
COPY requirements/worker.txt /app/worker.txt
# What models that members bring find where they run is said where they are brought.
ENV LEPTON_TRAINING_LISTEN=0.0.0.0:50051 LEPTON_TRAINING_MODEL_IMAGE_LOCK=/app/worker.txt
CMD ["python", "-m", "services.training.main"]

FROM control AS deployment
ENV LEPTON_DEPLOYMENT_LISTEN=0.0.0.0:50051
CMD ["python", "-m", "services.deployment.main"]

FROM control AS marketplace
ENV LEPTON_MARKETPLACE_LISTEN=0.0.0.0:50051
CMD ["python", "-m", "services.marketplace.main"]

# With "worker" behind its command it makes versions; without, it is the API.
FROM base AS data
COPY --from=data-environment /opt/lepton /opt/lepton
COPY --from=code /src /app
ENV LEPTON_DATA_LISTEN=0.0.0.0:50051
EXPOSE 50051
CMD ["python", "-m", "services.data.main"]

FROM base AS worker
COPY --from=worker-environment /opt/lepton /opt/lepton
COPY --from=code /src /app
CMD ["python", "-m", "services.standalone.node"]
