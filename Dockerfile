# The exporter: what pip installs, on Python, as a user that owns nothing. Nothing in it but the demo needs a shell.
FROM python:3.13.9-slim-trixie AS build
ARG PACKAGE=.
WORKDIR /src
COPY . .
RUN python3 -m venv --without-pip /opt/llm-exporter \
 && pip --python /opt/llm-exporter/bin/python3 install --no-cache-dir --disable-pip-version-check "$PACKAGE" \
 && mkdir -p /var/lib/llm-exporter

FROM python:3.13.9-slim-trixie
COPY --from=build /opt/llm-exporter /opt/llm-exporter
COPY --from=build --chown=65532:65532 /var/lib/llm-exporter /var/lib/llm-exporter
ENV PATH=/opt/llm-exporter/bin:$PATH PYTHONUNBUFFERED=1
USER 65532:65532
EXPOSE 9400
ENTRYPOINT ["/opt/llm-exporter/bin/llm-exporter"]
