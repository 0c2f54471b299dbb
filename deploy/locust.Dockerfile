# What loadtests/locustfile.py imports; compose.yaml mounts the file itself.
ARG BASE=docker.io/library/python:3.11-slim-bookworm
FROM ${BASE}
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /src
COPY pyproject.toml ./
COPY constraints constraints
RUN python3 -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
        print('httpx', 'numpy', *project['optional-dependencies']['load'], sep='\n')" > requirements.txt \
    && pip install --constraint constraints/cpu.txt --requirement requirements.txt
RUN useradd --uid 10001 --create-home locust
USER 10001
EXPOSE 8089
ENTRYPOINT ["locust"]
