// All kernels, as one module: what build.rs compiles for the GPU, and tests compile for the CPU.
#include "activation.cu"
#include "attention.cu"
#include "choose.cu"
#include "norm.cu"
#include "qkv.cu"
#include "rows.cu"
