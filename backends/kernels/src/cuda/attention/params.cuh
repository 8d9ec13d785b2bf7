// Sizes, strides and masks that all attention kernels share. They are compiled for one element type T and one head size D;
// shorter heads are padded with zeros.

struct Params {
  // Strides of batch, head, position: of the inputs, the output and its gradient, the gradients of the inputs.
  i64 qs[3], ks[3], vs[3], os[3], gs[3], dqs[3], dks[3], dvs[3];
  int h, hkv, tq, tk, d, causal, offset, splits, split_keys;
  float scale;  // positive
  int window;   // keys that a query sees at most, the latest ones; 0: any number. For a few query rows of one position only
};

#define LOG2E 1.44269504f
#define LN2 0.69314718f

// Keys that a position sees: a prefix of them.
__device__ __forceinline__ int visible(const Params& p, const int* lengths, int b, int position) {
  int keys = lengths ? lengths[b] : p.tk;
  return p.causal ? min(keys, p.offset + position + 1) : keys;
}

// Query rows of a key head: row r is head r % size at position r / size.
struct Group {
  u32 size, inverse;  // ceil(2^32 / size): exact as long as size^2 tq stays below 2^32
  __device__ __forceinline__ Group(int n) : size(n), inverse(0xffffffffu / n + 1) {}
  __device__ __forceinline__ int position(int r) const { return size == 1 ? r : __umulhi(r, inverse); }
  __device__ __forceinline__ int head(int r) const { return r - position(r) * size; }
};

// Offset of row r of the group of key head `kv` in memory of the strides s.
__device__ __forceinline__ i64 place(const Group& group, const i64* s, int b, int kv, int r) {
  int position = group.position(r);
  return b * s[0] + (kv * (int)group.size + r - position * (int)group.size) * s[1] + position * s[2];
}
