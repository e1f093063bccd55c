# Build: the packages, from the hashed lock, into a folder of their own.
FROM python:3.13-slim AS build
WORKDIR /srv/keyturn
RUN python -m venv /opt/venv
COPY requirements.runtime.lock ./
RUN /opt/venv/bin/pip install --no-cache-dir --require-hashes --only-binary=:all: -r requirements.runtime.lock

# Run: no compiler, no cache, no root; nothing is written but below /var/lib/keyturn.
FROM python:3.13-slim
# Any user id may be given to the container (OpenShift does), so any may make its folder in the volume, as in /tmp.
RUN useradd --system --uid 10001 --no-create-home keyturn \
    && install -d -m 1777 /var/lib/keyturn
WORKDIR /srv/keyturn
COPY --from=build /opt/venv /opt/venv
COPY alembic.ini ./
COPY migrations migrations
COPY app app
# COPY keeps modes, and a checkout may be closed to others.
RUN chmod -R a+rX . \
    && printf '#!/bin/sh\nexec /opt/venv/bin/python -m app "$@"\n' > /usr/local/bin/keyturn \
    && chmod 755 /usr/local/bin/keyturn
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    KEYTURN_HOST=0.0.0.0 KEYTURN_DATA_DIR=/var/lib/keyturn/data
# A number, because Kubernetes looks at no passwd file for `runAsNonRoot`.
USER 10001
# The embedded default's secret and database; with a Postgres nothing is written there.
VOLUME /var/lib/keyturn
EXPOSE 8000
# Asks where the environment says that the service listens, and goes through no proxy.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD \
    ["python", "-c", "import http.client, os; host, port = (os.environ.get(f'KEYTURN_{n}', '').strip() for n in ('HOST', 'PORT')); c = http.client.HTTPConnection('127.0.0.1' if host in ('', '0.0.0.0', '::') else host, int(port) if port.isdigit() else 8000, timeout=2); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["keyturn", "serve"]
