//! Activations rounded to 8 bits.

use super::tiles::{BLOCK, GROUPS};

/// Adding and taking it away rounds a small number to an integer, which its lowest bits then are.
const ROUND: f32 = 12_582_912.0;

/// A row of activations, block by block: integers between -127 and 127, the size of their step, and step times
/// their sum.
pub(super) struct Activations {
    /// Groups of four integers, each group in one word.
    pub(super) groups: Vec<[i32; GROUPS]>,
    pub(super) steps: Vec<f32>,
    pub(super) sums: Vec<f32>,
}

impl Activations {
    /// Rounds a row; its length must be a multiple of the block's.
    pub(super) fn new(x: &[f32]) -> Self {
        let blocks = x.len() / BLOCK;
        let mut row =
            Self { groups: vec![[0; GROUPS]; blocks], steps: vec![0.0; blocks], sums: vec![0.0; blocks] };
        let places = row.groups.iter_mut().zip(&mut row.steps).zip(&mut row.sums);
        for (x, ((groups, step), sum)) in x.chunks_exact(BLOCK).zip(places) {
            // Positive floats are in the order of their bits, infinity and NaN last.
            let largest = x.iter().fold(0, |most, v| most.max(v.to_bits() & 0x7fff_ffff));
            let largest = f32::from_bits(largest);
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            let mut values = [0i32; BLOCK];
            for (value, x) in values.iter_mut().zip(x) {
                *value = (x * inverse + ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
            }
            // What is not finite must not come out finite.
            *step = if largest.is_finite() { largest / 127.0 } else { f32::NAN };
            *sum = *step * values.iter().sum::<i32>() as f32;
            for (group, values) in groups.iter_mut().zip(values.chunks_exact(BLOCK / GROUPS)) {
                *group = values.iter().rev().fold(0, |word, v| word << 8 | (v & 0xff));
            }
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_the_nearest_step() {
        let x: Vec<f32> = (0..2 * BLOCK).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let row = Activations::new(&x);
        for (i, x) in x.iter().enumerate() {
            let byte = row.groups[i / BLOCK][i % BLOCK / 4].to_le_bytes()[i % 4] as i8;
            let step = row.steps[i / BLOCK];
            assert!((f32::from(byte) * step - x).abs() <= 0.5001 * step);
        }
        let zeros = Activations::new(&[0.0; BLOCK]);
        assert_eq!((zeros.groups[0], zeros.steps[0], zeros.sums[0]), ([0; GROUPS], 0.0, 0.0));
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = [1.0; BLOCK];
            x[3] = bad;
            assert!(Activations::new(&x).sums[0].is_nan());
        }
    }
}
