# Two images: `api`, the front door, in which there is no torch and no image library, and `worker`.
#
#     docker build --target api    --tag mayfly-api .
#     docker build --target worker --tag mayfly-worker .
#
# compose.yaml builds and runs both. Everything but the base image comes from the ordinary package
# index. On x86 that index serves torch built for CUDA: some gigabytes, and it runs on CPUs too.

ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS base
ENV PATH=/opt/mayfly/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

# Dependencies have layers of their own, so that a change of code does not fetch torch again.
FROM base AS api-packages
WORKDIR /src
RUN python -m venv /opt/mayfly
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*project['dependencies'], sep='\n')" > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt

FROM api-packages AS worker-packages
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*project['optional-dependencies']['worker'], sep='\n')" > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt

FROM api-packages AS api-build
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*project['optional-dependencies']['postgresql'], sep='\n')" > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt
COPY . .
RUN pip install --no-deps . && pip check

FROM worker-packages AS worker-build
COPY . .
RUN pip install --no-deps . && pip check

# What runs belongs to root and is not writable for the user that runs it.
FROM base AS runtime
RUN groupadd --gid 1000 mayfly \
    && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin mayfly
ENV HOME=/tmp
WORKDIR /
USER 1000:1000

FROM runtime AS api
COPY --from=api-build /opt/mayfly /opt/mayfly
ENV MAYFLY_HOST=0.0.0.0
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, ssl, urllib.request as u; u.urlopen(('https' if os.environ.get('MAYFLY_TLS_CERT') else 'http') + '://127.0.0.1:8080/healthz', timeout=2, context=ssl._create_unverified_context())"]
USER 1000:1000
CMD ["mayfly", "api"]

# No HEALTHCHECK: a worker has no port. compose.yaml asks Valkey whether a worker reports.
FROM runtime AS worker
COPY --from=worker-build /opt/mayfly /opt/mayfly
USER 1000:1000
CMD ["mayfly", "worker"]
