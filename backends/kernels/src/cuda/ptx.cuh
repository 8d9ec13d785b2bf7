// The instructions that CUDA C has no operator for. Everything else in these sources is plain C++.

__device__ __forceinline__ unsigned short round_to_bf16(float x) {
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

// Both rounded to bf16, the first one in the low half.
__device__ __forceinline__ unsigned pair(float low, float high) {
  unsigned bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

// c += a b for a 16 x 16 (rows), b 16 x 8 (columns), in the fragment layout of mma.m16n8k16.
__device__ __forceinline__ void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], const void* row) {
  unsigned address = (unsigned)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// The same with each matrix transposed.
__device__ __forceinline__ void load_matrices_transposed(unsigned (&r)[4], const void* row) {
  unsigned address = (unsigned)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// An 8 x 8 matrix of 16-bit elements transposed; lane l holds columns 2 (l % 4) and the next one of row l / 4.
__device__ __forceinline__ unsigned transposed(unsigned x) {
  unsigned y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

#if __CUDA_ARCH__ >= 900
// Waits for all blocks of the cluster that have not returned.
__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// What block `rank` of the cluster has where this one has `p` in its shared memory.
__device__ __forceinline__ float load_of(const float* p, unsigned rank) {
  unsigned address = (unsigned)__cvta_generic_to_shared(p);
  float x;
  asm volatile("mapa.shared::cluster.u32 %1, %1, %2;\nld.shared::cluster.f32 %0, [%1];"
               : "=f"(x), "+r"(address)
               : "r"(rank)
               : "memory");
  return x;
}
#endif

// A kernel that was started early waits here until all before it have ended and what they wrote can be read; until then
// it may read weights only. Every such kernel passes here, or those after it could start before those before it end.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel start early once all blocks of this one have come here.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// 2^x to within two units of the last place; results below the normal range are zero.
__device__ __forceinline__ float power_of_2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Starts a copy of 16 or 8 bytes to shared memory, zeros unless `valid`; `copied` waits for all that a thread has started.
__device__ __forceinline__ void copy_16(void* shared, const void* global, bool valid) {
  unsigned to = (unsigned)__cvta_generic_to_shared(shared), bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copy_8(void* shared, const void* global, bool valid) {
  unsigned to = (unsigned)__cvta_generic_to_shared(shared), bytes = valid ? 8 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copied() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// The block's dynamic shared memory.
#define SHARED(name) extern __shared__ __align__(16) unsigned char name[]
