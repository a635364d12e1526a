# vLLM's `vllm` of its build for processors; the model is a checkpoint. Both libraries are what vLLM asks for: without
# them its threads are not bound, and its allocations slow. Left alone it keeps a core of two free for itself.
start_peer() {
    local tcmalloc openmp
    tcmalloc=$(ldconfig -p | awk '/libtcmalloc_minimal.so.4/ && !path { path = $NF } END { print path }')
    openmp=$(dirname "$program")/../lib/libiomp5.so
    export LD_PRELOAD=$tcmalloc:$openmp VLLM_CPU_OMP_THREADS_BIND=0-$((threads - 1)) VLLM_CPU_NUM_OF_RESERVED_CPU=0
    export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-4} VLLM_TARGET_DEVICE=cpu
    export VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1
    exec "$program" serve "$model" --served-model-name m --host 127.0.0.1 --port "$port" --max-model-len "$context" \
        --max-num-seqs "$users" "$@"
}
