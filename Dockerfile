# The service in a container:  docker build -t face_future .  &&  docker run --rm -p 127.0.0.1:8000:8000 face_future
# Settings are environment variables (-e FACE_FUTURE_MAX_FILES=8, …), as `face_future serve --help` lists them.
# A thread is taken for each core, or for each that --cpus allows (-e FACE_FUTURE_THREADS=2 sets another number).
# A host name with a dot has to be listed (-e FACE_FUTURE_HOSTS=faces.example); addresses need not. For memory count 700 MB
# and, for each thread, 150 MB, with FACE_FUTURE_MEMORY_MB (600) for the pixels of large pictures on top.
# Uploads stay in memory, so the file system may be read-only: add  --read-only --tmpfs /tmp.
FROM python:3.12-slim-bookworm

WORKDIR /src
COPY settings.ini setup.py README.md LICENSE MANIFEST.in ./
COPY face_future face_future
# The package itself: its metadata hold the versions. Its wheels bring their libraries along; nothing is wanting from apt-get.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[serve]" && useradd --system --uid 10001 serve

WORKDIR /
USER 10001
ENV FACE_FUTURE_HOST=0.0.0.0 FACE_FUTURE_PORT=8000 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 NO_ALBUMENTATIONS_UPDATE=1
# docker build --build-arg COMMIT=$(git rev-parse HEAD) …: GET /model and /metrics name it.
ARG COMMIT=""
ENV FACE_FUTURE_COMMIT=$COMMIT
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
  CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ['FACE_FUTURE_PORT']}/ready\", timeout=4)"]
CMD ["face_future", "serve"]
