// Products of warpgroups: c = a b^T, or c += a b^T if `keep`, in float32, for 64 rows and 16 columns of a. Rows of b, or with `turned` its
// columns, are in shared memory, those of a there too or in registers. Lane l of warp w has rows 16 w + l / 4 and 8 more, columns
// 2 (l % 4) and the next one of every group of 8; of a in registers the same for both groups of 8 columns.

// Before the first product that reads registers or shared memory which this thread has written.
__device__ __forceinline__ void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Ends a group of products.
__device__ __forceinline__ void wgmma_queued() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// All but the last `left` groups of products have been made.
template <int left> __device__ __forceinline__ void wgmma_done() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(left) : "memory"); }

// A tile of rows of 128 bytes, swizzled; `group` is from 8 of its rows to the next, and `next` from 64 columns to the next 64 of
// a tile that is read by columns.
__device__ __forceinline__ u64 tile_of(const void* p, u32 next, u32 group) {
  return (u64)((shared_address(p) & 0x3ffff) >> 4) | (u64)(next >> 4) << 16 | (u64)(group >> 4) << 32 | (u64)1 << 62;
}

#define FLOATS_4(c, i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define FLOATS_16(c, i) FLOATS_4(c, i), FLOATS_4(c, i + 1), FLOATS_4(c, i + 2), FLOATS_4(c, i + 3)
#define FLOATS_32(c, i) FLOATS_16(c, i), FLOATS_16(c, i + 4)
#define FLOATS_64(c, i) FLOATS_16(c, i), FLOATS_16(c, i + 4), FLOATS_16(c, i + 8), FLOATS_16(c, i + 12)

__device__ __forceinline__ void wgmma(float (&c)[8][4], u64 a, u64 b, int keep) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, p, 1, 1, 0, 0;\n}"
      : FLOATS_32(c, 0)
      : "l"(a), "l"(b), "r"(keep));
}

// With TURNED by columns of b.
template <int TURNED = 0> __device__ __forceinline__ void wgmma(float (&c)[16][4], u64 a, u64 b, int keep) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "
      "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
      "%62, %63"
      "}, %64, %65, p, 1, 1, 0, %67;\n}"
      : FLOATS_64(c, 0)
      : "l"(a), "l"(b), "r"(keep), "n"(TURNED));
}

__device__ __forceinline__ void wgmma_turned(float (&c)[8][4], const u32 (&a)[4], u64 b, int keep) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}"
      : FLOATS_32(c, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}

__device__ __forceinline__ void wgmma_turned(float (&c)[16][4], const u32 (&a)[4], u64 b, int keep) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "
      "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
      "%62, %63"
      "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}"
      : FLOATS_64(c, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep));
}
