# llama.cpp's `llama-server`; the model is a GGUF file.
start_peer() {
    exec "$program" --model "$model" --alias m --host 127.0.0.1 --port "$port" --threads "$threads" \
        --threads-batch "$threads" --parallel "$users" --ctx-size $((users * context)) "$@"
}
