//! Names that are only compared, as 16 bytes instead of texts.

use sha2::{Digest, Sha256};

/// The first half of a name's SHA-256: names with the same one are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct NameHash([u8; 16]);

impl NameHash {
    /// Of a name.
    pub(crate) fn of(name: &str) -> Self {
        let mut half = [0; 16];
        half.copy_from_slice(&Sha256::digest(name)[..16]);
        Self(half)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_half_of_the_names_sha256() {
        // e3b0c44298fc1c149afbf4c8996fb924... is that of nothing
        assert_eq!(u128::from_be_bytes(NameHash::of("").0), 0xe3b0_c442_98fc_1c14_9afb_f4c8_996f_b924);
        assert_ne!(NameHash::of("a"), NameHash::of("b"));
    }
}
