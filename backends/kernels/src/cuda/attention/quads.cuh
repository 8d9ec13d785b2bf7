// What the four lanes do together that hold a row of a fragment.

// Turns the 4 x 4 matrix whose row t is x in lane t of four.
__device__ __forceinline__ void transpose_quad(u32 (&x)[4]) {
  int t = threadIdx.x % 4;
#pragma unroll
  for (int step = 1; step < 4; step *= 2) {
    bool odd = t & step;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i & step) continue;
      u32 given = __shfl_xor_sync(0xffffffffu, odd ? x[i] : x[i + step], step);
      if (odd) x[i] = given;
      else x[i + step] = given;
    }
  }
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
