//! CRC-32C (Castagnoli, RFC 3720), the check sum of TensorBoard's records.

/// The polynomial 0x1EDC6F41, bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let (mut c, mut bit) = (i as u32, 0);
        while bit < 8 {
            c = if c & 1 == 1 { c >> 1 ^ POLYNOMIAL } else { c >> 1 };
            bit += 1;
        }
        table[i] = c;
        i += 1;
    }
    table
};

/// A check sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crc32c(u32);

impl Crc32c {
    /// The check sum of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let step = |c: u32, b: &u8| c >> 8 ^ TABLE[usize::from(c as u8 ^ b)];
        Self(!bytes.iter().fold(!0, step))
    }

    /// Its value.
    pub fn value(self) -> u32 {
        self.0
    }

    /// The value as TFRecord files hold it: a check sum of data that holds check sums would be weak otherwise.
    pub fn masked(self) -> u32 {
        self.0.rotate_right(15).wrapping_add(0xa282_ead8)
    }
}

#[cfg(test)]
mod tests {
    use super::Crc32c;

    #[test]
    fn values_of_rfc_3720() {
        assert_eq!(Crc32c::of(b"123456789").value(), 0xe306_9283);
        assert_eq!(Crc32c::of(&[0; 32]).value(), 0x8a91_36aa);
        assert_eq!(Crc32c::of(&[0xff; 32]).value(), 0x62a8_ab43);
    }
}
