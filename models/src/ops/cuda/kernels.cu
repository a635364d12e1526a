// All kernels, as one module: what build.rs compiles for the GPU, and tests compile for the CPU.
#include "activation.cu"
#include "angles.cu"
#include "attention.cu"
#include "best.cu"
#include "bias.cu"
#include "norm.cu"
#include "qkv.cu"
#include "rows.cu"
