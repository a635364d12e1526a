# Build:  docker build -t passerelle .
# Run:    docker run --rm -p 127.0.0.1:8080:8080 -v passerelle:/var/lib/passerelle passerelle
#
# The image listens on every address, so it refuses to start without keys. Make one in the same volume first:
#         docker run --rm -v passerelle:/var/lib/passerelle passerelle key create alice

FROM rust:1.90-slim-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --locked --profile dist --package passerelle

FROM debian:bookworm-slim
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/passerelle passerelle
COPY --from=build /src/target/dist/passerelle /usr/local/bin/passerelle
USER 10001
ENV HOME=/var/lib/passerelle XDG_DATA_HOME=/var/lib/passerelle HF_HOME=/var/lib/passerelle/huggingface
VOLUME /var/lib/passerelle
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["passerelle"]
CMD ["serve", "--listen", "0.0.0.0:8080"]
