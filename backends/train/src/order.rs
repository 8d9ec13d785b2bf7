//! In which order items come: a pure function of seed, epoch and step, so that nothing has to be remembered.

use crate::trainable::Item;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

/// Batches that are sorted by length together: more pad less, but make batches less mixed.
const POOL: usize = 32;

/// A generator of its own for everything that has a name.
pub(crate) fn generator(seed: u64, name: &str, number: u64) -> ChaCha8Rng {
    let hash = Sha256::new()
        .chain_update(seed.to_le_bytes())
        .chain_update(number.to_le_bytes())
        .chain_update(name)
        .finalize();
    ChaCha8Rng::from_seed(hash.into())
}

/// A number below `n`; the bias of 2^-64 n is of no matter here.
pub(crate) fn below(rng: &mut ChaCha8Rng, n: usize) -> usize {
    ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize
}

fn shuffle<T>(items: &mut [T], rng: &mut ChaCha8Rng) {
    for i in (1..items.len()).rev() {
        items.swap(i, below(rng, i + 1));
    }
}

/// Batches of items of like length, epoch after epoch.
///
/// Each epoch is a fresh permutation, cut into pools of 32 batches; a pool is sorted by length and cut into batches,
/// and all batches are shuffled. What is left over at the end of an epoch is left out of it.
#[derive(Debug)]
pub struct Order {
    name: String,
    seed: u64,
    lengths: Vec<(u32, u32)>,
    batch: usize,
    epoch: Option<(u64, Vec<u32>)>,
}

impl Order {
    /// The order of `items` in batches of `batch` (all of them where there are fewer). `name` makes it another
    /// one than that of other items under the same seed.
    pub fn new(name: &str, seed: u64, items: &[Item], batch: usize) -> Self {
        let lengths: Vec<_> = items.iter().map(|i| (i.decoder, i.encoder)).collect();
        let batch = batch.clamp(1, lengths.len().max(1));
        Self { name: name.to_owned(), seed, lengths, batch, epoch: None }
    }

    /// Items of a batch.
    pub fn size(&self) -> usize {
        self.batch
    }

    /// Batches of an epoch.
    pub fn batches(&self) -> usize {
        self.lengths.len() / self.batch
    }

    /// The batch of a step (from 0), shortest items first, and its epoch.
    pub fn batch(&mut self, step: usize) -> (&[u32], u64) {
        let batches = self.batches().max(1);
        let epoch = (step / batches) as u64;
        if self.epoch.as_ref().is_none_or(|(e, _)| *e != epoch) {
            self.epoch = Some((epoch, self.permutation(epoch)));
        }
        let at = step % batches * self.batch;
        let items = self.epoch.as_ref().map_or(&[][..], |(_, order)| order);
        (&items[at.min(items.len())..(at + self.batch).min(items.len())], epoch)
    }

    fn permutation(&self, epoch: u64) -> Vec<u32> {
        let mut rng = generator(self.seed, &self.name, epoch);
        let mut order: Vec<u32> = (0..self.lengths.len() as u32).collect();
        shuffle(&mut order, &mut rng);
        order.truncate(self.batches() * self.batch);
        for pool in order.chunks_mut(POOL * self.batch) {
            pool.sort_by_key(|i| (self.lengths[*i as usize], *i));
        }
        let mut batches: Vec<&[u32]> = order.chunks(self.batch).collect();
        shuffle(&mut batches, &mut rng);
        batches.concat()
    }
}

/// Splits a batch so that each part has at most `most` padded positions (0: no bound); an item that is longer goes
/// alone.
pub fn micro_batches<'a>(batch: &'a [u32], items: &[Item], most: usize) -> Vec<&'a [u32]> {
    if most == 0 {
        return vec![batch];
    }
    let (mut parts, mut start) = (Vec::new(), 0);
    let (mut encoder, mut longest) = (0, 0);
    for (i, item) in batch.iter().map(|i| items[*i as usize]).enumerate() {
        let (e, l) = (encoder + item.encoder as usize, longest.max(item.decoder as usize));
        if i > start && e + l * (i + 1 - start) > most {
            parts.push(&batch[start..i]);
            (start, encoder, longest) = (i, item.encoder as usize, item.decoder as usize);
        } else {
            (encoder, longest) = (e, l);
        }
    }
    parts.push(&batch[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(n: u32) -> Vec<Item> {
        (0..n).map(|i| Item { encoder: 10, decoder: i * 37 % 101 + 1, targets: 1 }).collect()
    }

    #[test]
    fn an_epoch_has_every_item_once_and_the_next_another_order() {
        let items = items(60);
        let mut order = Order::new("a", 7, &items, 6);
        let mut epoch = |e: usize| {
            let mut all = Vec::new();
            for s in 0..10 {
                let (batch, epoch) = order.batch(e * 10 + s);
                assert_eq!((batch.len(), epoch), (6, e as u64));
                assert!(batch.is_sorted_by_key(|i| items[*i as usize].decoder));
                all.extend_from_slice(batch);
            }
            all
        };
        let (first, second, again) = (epoch(0), epoch(1), epoch(0));
        assert_eq!(first, again);
        assert_ne!(first, second);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..60).collect::<Vec<_>>());
        let mut other = Order::new("b", 7, &items, 6);
        assert_ne!(other.batch(0).0, &first[..6]);
    }

    #[test]
    fn fewer_items_than_a_batch_are_one_batch() {
        let items = items(3);
        let mut order = Order::new("a", 0, &items, 8);
        assert_eq!((order.batch(0).0.len(), order.batch(5).1), (3, 5));
        assert_eq!(Order::new("a", 0, &[], 8).batch(3).0, &[0u32; 0]);
    }

    #[test]
    fn micro_batches_are_bounded_and_complete() {
        let items = items(20);
        let batch: Vec<u32> = (0..20).collect();
        let parts = micro_batches(&batch, &items, 300);
        assert_eq!(parts.concat(), batch);
        assert!(parts.len() > 2);
        for part in parts {
            let longest = part.iter().map(|i| items[*i as usize].decoder).max().unwrap() as usize;
            assert!(part.len() == 1 || part.len() * (10 + longest) <= 300);
        }
        assert_eq!(micro_batches(&batch, &items, 1).len(), 20);
        assert_eq!(micro_batches(&batch, &items, 0).len(), 1);
    }
}
