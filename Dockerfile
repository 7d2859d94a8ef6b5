# Both programs with what they need to back up PostgreSQL 15: docker build --build-arg VERSION=$(git describe --tags --always) .
# docs/compose.md tells how it is used, and what to change for another PostgreSQL.

FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY producer producer
COPY worker worker
COPY shared shared
# Compiled once for all versions; the stamped build below only links anew.
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o /out/ ./producer ./worker ./shared/lab/cmd/site
ARG VERSION=unknown
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X catalog-backup/shared/exit.Version=$VERSION" -o /out/ ./producer ./worker

# pgBackRest's package pulls in Perl for tools that are not used here; its program alone needs the libraries below.
FROM debian:bookworm-slim AS tools
RUN apt-get update && apt-get install -y --no-install-recommends pgbackrest=2.45-* tini=0.19.0-*

# What fills the example of docker-compose.yml with data; no part of the product.
FROM debian:bookworm-slim AS example
COPY --from=build /out/site /usr/local/bin/
USER 999:999
ENTRYPOINT ["site"]

FROM debian:bookworm-slim AS programs
# The worker reads PostgreSQL's data directory, so it has the user of the server: 999 in Debian's official image.
ARG POSTGRES_UID=999
ARG POSTGRES_GID=999
RUN groupadd -r -g $POSTGRES_GID postgres \
 && useradd -r -g postgres -u $POSTGRES_UID -d /var/lib/catalog-backup -s /usr/sbin/nologin postgres \
 && apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates tzdata libpq5 libxml2 libssl3 liblz4-1 libzstd1 libbz2-1.0 zlib1g \
 && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log /var/cache/debconf/*-old \
 && install -d -o postgres -g postgres -m 755 /data2/backup \
 && install -d -o postgres -g postgres -m 700 /data2/tmp \
 && install -d -o postgres -g postgres -m 750 /var/lib/catalog-backup \
 && install -d -m 755 /etc/catalog-backup
COPY --from=tools /usr/bin/pgbackrest /usr/bin/tini /usr/bin/
COPY --from=build /out/producer /out/worker /usr/local/bin/
COPY docs/compose/config.yaml /etc/catalog-backup/config.yaml.example
RUN pgbackrest version && worker --version && producer --version
USER postgres
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s CMD ["worker", "health", "--ready"]
# An init: the tools of a stage that is ended leave children behind, which somebody must reap.
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["worker", "run"]
