# Build:  docker build -t passerelle .
# Run:    docker run --rm --stop-timeout 40 -p 127.0.0.1:8080:8080 -v passerelle:/var/lib/passerelle passerelle
#
# A server that is told to stop finishes what runs, for at most 30 s (server.drain_timeout); without --stop-timeout, docker kills it
# after 10 s. A folder in the place of the volume must belong to user 10001.
#
# The image listens on every address, so it refuses to start without keys. Make one in the same volume first:
#         docker run --rm -v passerelle:/var/lib/passerelle passerelle key create alice
#
# For NVIDIA GPUs:  docker build --target cuda -t passerelle:cuda .  and docker run --gpus all ...  (docs/gpu.md)
#
# The health check asks port 8080 in clear, once models are loaded: --no-healthcheck where the server listens otherwise.

FROM rust:1.90-slim-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --locked --profile dist --package passerelle

FROM build AS build-cuda
RUN apt-get update && apt-get install --yes --no-install-recommends python3-pip && rm -rf /var/lib/apt/lists/*
RUN eval "$(.ci/cuda-toolkit /opt/cuda-toolkit)" && cargo build --locked --profile dist --package passerelle --features cuda
RUN python3 -m pip install --no-deps --only-binary=:all: --target /opt/cuda \
        nvidia-cublas==13.0.2.14 nvidia-curand==10.4.0.35 nvidia-cuda-runtime==13.0.96

FROM debian:bookworm-slim AS cuda
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/passerelle passerelle
COPY --from=build-cuda /src/target/dist/passerelle /usr/local/bin/passerelle
COPY --from=build-cuda /opt/cuda/nvidia/cu13/lib /opt/cuda/lib
USER 10001
ENV HOME=/var/lib/passerelle XDG_DATA_HOME=/var/lib/passerelle HF_HOME=/var/lib/passerelle/huggingface
ENV LD_LIBRARY_PATH=/opt/cuda/lib NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME /var/lib/passerelle
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=30m --interval=30s --timeout=5s CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /health HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3 && read -r _ status _ <&3 && [ \"$status\" = 200 ]"]
ENTRYPOINT ["passerelle"]
CMD ["serve", "--listen", "0.0.0.0:8080"]

FROM debian:bookworm-slim
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/passerelle passerelle
COPY --from=build /src/target/dist/passerelle /usr/local/bin/passerelle
USER 10001
ENV HOME=/var/lib/passerelle XDG_DATA_HOME=/var/lib/passerelle HF_HOME=/var/lib/passerelle/huggingface
VOLUME /var/lib/passerelle
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=30m --interval=30s --timeout=5s CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /health HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3 && read -r _ status _ <&3 && [ \"$status\" = 200 ]"]
ENTRYPOINT ["passerelle"]
CMD ["serve", "--listen", "0.0.0.0:8080"]
