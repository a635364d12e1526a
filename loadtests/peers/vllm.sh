# vLLM's `vllm` of its build for processors; the model is a checkpoint. Both libraries are what vLLM asks for: without
# them its threads are not bound, and its allocations slow. Left alone it keeps a core of two free for itself.
start_peer() {
    local tcmalloc openmp bind
    # Where it lies is not in everybody's path.
    PATH=$PATH:/usr/sbin:/sbin
    tcmalloc=$(ldconfig -p | awk '/libtcmalloc_minimal.so.4/ && !path { path = $NF } END { print path }')
    openmp=$(dirname "$program")/../lib/libiomp5.so
    [[ -n $tcmalloc ]] || fail "libtcmalloc_minimal.so.4 is not on this system; without it vLLM is slower than it can be"
    [[ -e $openmp || $(uname -m) != x86_64 ]] || fail "$openmp is not there; without it vLLM is slower than it can be"
    bind=$(processors "$threads")
    [[ -e $openmp ]] && tcmalloc+=:$openmp
    export LD_PRELOAD=$tcmalloc VLLM_CPU_OMP_THREADS_BIND=$bind VLLM_CPU_NUM_OF_RESERVED_CPU=0
    export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-4} VLLM_TARGET_DEVICE=cpu
    export VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1
    exec "$program" serve "$model" --served-model-name m --host 127.0.0.1 --port "$port" --max-model-len "$context" \
        --max-num-seqs "$users" "$@"
}

# As many as are asked for, of those that this script may use: one of each core, and second ones only after all of these.
processors() {
    python3 - "$1" <<'PYTHON'
import os
import sys


def core(processor):
    try:
        with open(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list") as siblings:
            return siblings.read()
    except OSError:
        return processor


cores, first, further = set(), [], []
for processor in sorted(os.sched_getaffinity(0)):
    (further if core(processor) in cores else first).append(processor)
    cores.add(core(processor))
print(*(first + further)[: int(sys.argv[1])], sep=",")
PYTHON
}
