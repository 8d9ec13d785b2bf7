// What all ways of reading new positions behind remembered ones share.

typedef bf16 T;
typedef Pack<bf16> P8;

// Where new positions stand. Row r is position r % t of sequence r / t, the position there is `offset` + r % t, or, where
// there are lengths, the sequence's last. Strides of the memory [sequences, heads, room, d] are in elements.
struct Place {
  const u32* lengths;
  i64 sequence, head;
  int offset, t;
};

__device__ __forceinline__ i64 memory_index(const Place& p, int row, int head, int d) {
  int b = row / p.t, t = row % p.t;
  int position = p.lengths ? (int)p.lengths[b] - 1 + t : p.offset + t;
  return b * p.sequence + head * p.head + (i64)position * d;
}

// Values of the two elements of a head that are rotated together, as they are stored. `angle` is their index in the
// tables.
__device__ __forceinline__ void rotate(const T* cos, const T* sin, i64 angle, float& a, float& b) {
  float co = widen(cos[angle]), si = widen(sin[angle]), first = a * co - b * si;
  b = b * co + a * si;
  a = first;
}

struct Projections {
  const T *q, *k, *v, *q_bias, *k_bias, *v_bias;
};

__device__ __forceinline__ float silu(float x) { return x / (1.f + __expf(-x)); }
