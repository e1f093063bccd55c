# The image of Python is named by its tag. `python3 -m tools.pin_images` adds the digest that the tag has today, so that
# each later build begins with the same bytes (docs/production.md, step 2).
ARG PYTHON_IMAGE=python:3.13-slim

# Build: the packages, from the hashed lock, into a folder of their own.
FROM ${PYTHON_IMAGE} AS build
WORKDIR /srv/keyturn
RUN python -m venv /opt/venv
COPY requirements.runtime.lock ./
RUN /opt/venv/bin/pip install --no-cache-dir --require-hashes --only-binary=:all: -r requirements.runtime.lock

# Run: no compiler, no cache, no root; nothing is written but below /var/lib/keyturn.
FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="Keyturn" \
    org.opencontainers.image.description="A self-hosted token service: sign in, refresh, log out, verify." \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.licenses="Apache-2.0"
# Any user id may be given to the container (OpenShift does), so any may make its folder in the volume, as in /tmp.
RUN useradd --system --uid 10001 --no-create-home keyturn \
    && install -d -m 1777 /var/lib/keyturn
WORKDIR /srv/keyturn
COPY --from=build /opt/venv /opt/venv
COPY LICENSE alembic.ini deploy/docker/healthcheck.py ./
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
# The requests under way end within ten seconds of this signal.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "/srv/keyturn/healthcheck.py"]
CMD ["keyturn", "serve"]
