// What both forward passes by products of warpgroups share: W warpgroups with 64 query rows of one head each, against N keys at a time.

struct Attention {
  int tq, tk, h, hkv, causal, offset;  // sizes, and whether what stands behind a position is hidden, which `offset` others precede
  int column, sequence, head;          // of the first key of a key head: column, and matrices from a sequence or key head to the next
  int os;                              // elements from a position of the output to the next
  float scale;                         // positive
};

constexpr int QUERIES = 64 * W, BOXES = D / 64;
constexpr int KEYS = N * 128;  // bytes of a box of them

// Boxes of 64 columns, swizzled.
__device__ __forceinline__ void load_head(unsigned char* to, const TensorMap* map, u64* barrier, int column, int row, int matrix,
                                          int rows) {
  barrier_expect(barrier, BOXES * rows * 128);
#pragma unroll
  for (int i = 0; i < BOXES; i++) load_box(to + i * rows * 128, map, barrier, column + 64 * i, row, matrix);
}

// Hides, from the scores of a warpgroup whose first row is `first` and this lane's `row`, keys from n0 on that are not seen; t is
// the lane's place in its quad.
__device__ __forceinline__ void hide(float (&s)[N / 8][4], const Attention& p, int n0, int end, int first, int row, int t) {
  if (n0 + N > end || (p.causal && n0 + N > p.offset + first + 1)) {
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        int key = n0 + 8 * n + 2 * t + e % 2;
        if (key >= end || (p.causal && key > p.offset + row + e / 2 * 8)) s[n][e] = -infinity();
      }
  }
}

// Stores this lane's rows of the output, `row` and 8 more, and their log-sum-exp.
__device__ __forceinline__ void store_rows(bf16* o, float* lse, const Attention& p, const float (&out)[D / 8][4], const float (&top)[2],
                                           const float (&total)[2], int b, int head, int row, int t) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    int own = row + 8 * r;
    float all = quad_sum(total[r]), inverse = all > 0.f ? 1.f / all : all;
    bf16* to = o + ((i64)b * p.tq + own) * p.os + head * D;
#pragma unroll
    for (int n = 0; n < D / 8; n += 4) {
      u32 x[4];
#pragma unroll
      for (int j = 0; j < 4; j++) x[j] = pair(out[n + j][2 * r] * inverse, out[n + j][2 * r + 1] * inverse);
      transpose_quad(x);
      if (own < p.tq) *(uint4*)(to + 8 * (n + t)) = make_uint4(x[0], x[1], x[2], x[3]);
    }
    if (t == 0 && own < p.tq)
      lse[((i64)b * p.h + head) * p.tq + own] = all == 0.f ? infinity() : top[r] * p.scale + logf(all);
  }
}
