# Build: the packages, from the hashed lock, into a folder of their own.
FROM python:3.13-slim AS build
WORKDIR /srv/keyturn
RUN python -m venv /opt/venv
COPY requirements.runtime.lock ./
RUN /opt/venv/bin/pip install --no-cache-dir --require-hashes --only-binary=:all: -r requirements.runtime.lock

# Run: no compiler, no cache, no root.
FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home keyturn \
    && install -d -o keyturn -m 0700 /var/lib/keyturn
WORKDIR /srv/keyturn
COPY --from=build /opt/venv /opt/venv
COPY alembic.ini ./
COPY migrations migrations
COPY app app
RUN printf '#!/bin/sh\nexec /opt/venv/bin/python -m app "$@"\n' > /usr/local/bin/keyturn \
    && chmod 755 /usr/local/bin/keyturn
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    KEYTURN_HOST=0.0.0.0 KEYTURN_DATA_DIR=/var/lib/keyturn
USER keyturn
# The embedded default's secret and database; with a Postgres nothing is written there.
VOLUME /var/lib/keyturn
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD \
    ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ.get('KEYTURN_PORT', 8000)}/healthz\", timeout=2)"]
CMD ["keyturn", "serve"]
