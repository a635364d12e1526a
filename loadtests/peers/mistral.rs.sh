# mistral.rs's `mistralrs`; the model is a checkpoint. Its completions take no ids and tell no usage: chat does.
asked_by_chat=yes
start_peer() {
    export RAYON_NUM_THREADS=$threads HF_HUB_OFFLINE=1
    exec "$program" serve --model-id "$model" --host 127.0.0.1 --port "$port" --max-seqs "$users" --no-ui "$@"
}
