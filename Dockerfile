# syntax=docker/dockerfile:1
# The image of mongomux: the program and what it links to, nothing else; no shell, no package manager, no root.
#
#     docker build --tag mongomux --build-arg REVISION="$(git rev-parse HEAD)" .
#
# Tags are names that move. Who builds what others rely on pins both images by digest: RUST_IMAGE=rust:...@sha256:... .
ARG RUST_IMAGE=rust:1.95-bookworm
# Of the same Debian, as the program takes its C library from here. A static build would need another one (musl).
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${RUST_IMAGE} AS build
WORKDIR /build

# Dependencies, in a layer of their own that lasts until they change. Benches and tests that the manifest names are not built here,
# so their files are not copied, and their names (at its end) go.
COPY Cargo.toml Cargo.lock ./
RUN sed -i '/^\[\[/,$d' Cargo.toml \
    && mkdir src \
    && touch src/lib.rs \
    && echo 'fn main() {}' >src/main.rs \
    && cargo build --release --locked --bin mongomux

# What is copied may be older than what was built just now, and would then not be built at all. Names of functions are left in, for
# back-traces.
COPY src src
RUN touch src/lib.rs src/main.rs \
    && cargo build --release --locked --bin mongomux \
    && strip --strip-debug target/release/mongomux

FROM ${RUNTIME_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mongomux" \
      org.opencontainers.image.description="PgBouncer for MongoDB: thousands of client sockets over a handful of upstream connections" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /build/target/release/mongomux /usr/local/bin/mongomux

# By number, so that Kubernetes can see that it is not root. Nothing is ever written: the root file system can be read-only.
USER 65532:65532

# Clients and the admin port. Both are loopback addresses of the container unless MONGOMUX_LISTEN and MONGOMUX_ADMIN say otherwise,
# which suits a sidecar in a pod.
EXPOSE 27016 9627

# Drains for up to 25 s; the 10 s that Docker leaves are too few: `docker stop --time 30`, or stop_grace_period.
STOPSIGNAL SIGTERM
# The program asks itself, at the admin address that it was given in the environment. MongoDB's absence does not make it unhealthy.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s --retries=3 CMD ["/usr/local/bin/mongomux", "admin", "livez"]
ENTRYPOINT ["/usr/local/bin/mongomux"]
CMD ["run"]
