//! How much of a haystack fits.

use e2llm_plugin::Result;

/// Guesses from the slope, before the rest is halved.
const GUESSES: usize = 16;

/// The greatest number in `least..=most` whose size is within `budget`, where sizes grow with the number, nearly evenly;
/// `None` where even the least exceeds it.
///
/// # Errors
/// Those of `size`.
pub(crate) fn greatest(
    least: usize,
    most: usize,
    budget: u64,
    mut size: impl FnMut(usize) -> Result<u64>,
) -> Result<Option<usize>> {
    let base = size(least)?;
    if base > budget || most < least {
        return Ok(None);
    }
    let (mut low, mut low_size) = (least, base);
    let (mut high, mut high_size) = (most + 1, None);
    let mut slope = None;
    for round in 0.. {
        if high - low <= 1 {
            break;
        }
        let room = (budget - low_size) as f64;
        let guess = match (high_size, slope) {
            _ if round >= GUESSES => low + (high - low) / 2,
            (Some(above), _) => low + ((high - low) as f64 * room / (above - low_size) as f64) as usize,
            (None, Some(slope)) => low + (room / slope) as usize,
            (None, None) => low + 16,
        };
        let guess = guess.clamp(low + 1, high - 1);
        let found = size(guess)?;
        slope = Some(((found.saturating_sub(base)) as f64 / (guess - least) as f64).max(1e-3));
        if found <= budget {
            (low, low_size) = (guess, found);
        } else {
            (high, high_size) = (guess, Some(found));
        }
    }
    Ok(Some(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_that_fits_is_found_with_few_looks() {
        for budget in [0, 6, 7, 8, 999, 1000, 5_000, 123_456] {
            for most in [3, 10_000] {
                let mut looks = 0;
                // uneven sizes
                let size = |n: usize| 7 + (n * 13 + n % 5) as u64;
                let found = greatest(0, most, budget, |n| {
                    looks += 1;
                    Ok(size(n))
                });
                let expected = (0..=most).take_while(|n| size(*n) <= budget).last();
                assert_eq!(found.unwrap(), expected, "{budget}");
                assert!(looks <= 12, "{looks} looks for {budget}");
            }
        }
        assert_eq!(greatest(3, 2, 10, |_| Ok(1)).unwrap(), None);
    }
}
