// Element types, 16-byte accesses, and reductions that all kernels share. Compiled by nvrtc without any header.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

struct bf16 {
  u16 bits;
};

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

template <class T> struct Narrow;
template <> struct Narrow<float> {
  static __device__ __forceinline__ float of(float x) { return x; }
};
template <> struct Narrow<bf16> {
  static __device__ __forceinline__ bf16 of(float x) {
    bf16 y;
    y.bits = round_to_bf16(x);
    return y;
  }
};

// Elements of one 16-byte access.
template <class T> struct alignas(16) Pack {
  static const int N = 16 / sizeof(T);
  T v[N];
};

// V is 1 or Pack<T>::N.
template <int V, class T> __device__ __forceinline__ void load(const T* p, float* out) {
  if (V == 1) {
    out[0] = widen(*p);
  } else {
    Pack<T> pack = *(const Pack<T>*)p;
#pragma unroll
    for (int j = 0; j < V; j++) out[j] = widen(pack.v[j]);
  }
}

template <int V, class T> __device__ __forceinline__ void store(T* p, const float* in) {
  if (V == 1) {
    *p = Narrow<T>::of(in[0]);
  } else {
    Pack<T> pack;
#pragma unroll
    for (int j = 0; j < V; j++) pack.v[j] = Narrow<T>::of(in[j]);
    *(Pack<T>*)p = pack;
  }
}

__device__ __forceinline__ bool aligned(const void* p) { return ((u64)p & 15) == 0; }

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int o = 16; o > 0; o /= 2) x += __shfl_xor_sync(0xffffffffu, x, o);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int o = 16; o > 0; o /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, o));
  return x;
}

// Sum over a block of at most 1024 threads (a multiple of 32); every thread gets it.
__device__ __forceinline__ float block_sum(float x) {
  __shared__ float parts[32];
  int warps = blockDim.x / 32;
  x = warp_sum(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  float total = 0.f;
  for (int i = 0; i < warps; i++) total += parts[i];
  return total;
}

__device__ __forceinline__ float block_max(float x) {
  __shared__ float parts[32];
  int warps = blockDim.x / 32;
  x = warp_max(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  float top = parts[0];
  for (int i = 1; i < warps; i++) top = fmaxf(top, parts[i]);
  return top;
}

__device__ __forceinline__ i64 thread_index() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ i64 thread_count() { return (i64)gridDim.x * blockDim.x; }

// Defines `name_f32` and `name_bf16`, which call the template `name` with the given parameters and arguments.
#define FOR_TYPES(name, ARGS, CALL)                                          \
  extern "C" __global__ void name##_f32 ARGS(float) { name<float> CALL; }    \
  extern "C" __global__ void name##_bf16 ARGS(bf16) { name<bf16> CALL; }
