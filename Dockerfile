# docker build -t gateway .                                  on the CPU
# docker build -t gateway:gpu --build-arg VARIANT=gpu .      with CUDA; run it with --gpus all
# docker run -p 8000:8000 -v "$PWD/models:/models:ro" gateway
#
# On x86 the public index has only the CUDA build of PyTorch, several GB, and the CPU image would carry it too. Give the
# address of PyTorch's own index of CPU wheels as --build-arg PIP_EXTRA_INDEX_URL=... to leave CUDA out.
# Others reach the gateway in its container, so what changes it is refused until there is an admin key (docs/edge.md).
# Podman and Buildah keep the health check only with --format docker.

ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS builder
ARG VARIANT=cpu
ARG PIP_EXTRA_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/gateway
WORKDIR /src
# What the gateway needs comes before the gateway, so that a change of its code does not install PyTorch again.
COPY pyproject.toml ./
COPY constraints constraints
RUN python3 -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
        print(*project['dependencies'], *project['optional-dependencies']['${VARIANT}'], \
        *project['optional-dependencies']['tracing'], sep='\n')" > requirements.txt \
    && /opt/gateway/bin/pip install --constraint constraints/cpu.txt --requirement requirements.txt
COPY README.md LICENSE ./
COPY gateway gateway
RUN /opt/gateway/bin/pip install --no-deps .

FROM ${BASE}
RUN useradd --uid 10001 --create-home gateway
COPY --from=builder /opt/gateway /opt/gateway
COPY model_store /models
ENV PATH=/opt/gateway/bin:$PATH GATEWAY_MODEL_STORE=/models PYTHONUNBUFFERED=1
# A gateway.yaml is read from here.
WORKDIR /home/gateway
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python3", "-c", "import ssl; from os import environ; from urllib.request import urlopen; secure = 'GATEWAY_TLS_CERT' in environ; urlopen('http' + 's' * secure + '://127.0.0.1:' + environ.get('GATEWAY_PORT', '8000') + '/v2/health/live', timeout=4, context=ssl._create_unverified_context() if secure else None)"]
ENTRYPOINT ["gateway"]
CMD ["serve", "--host", "0.0.0.0"]
