//! Values of many samples, kind by kind: a task may have more samples than would fit as structures.

/// Values that are allocated together.
const BLOCK: usize = 1024;

/// A value for every place, the default where none was set. Blocks of nothing but defaults take no memory, and none is ever
/// moved to grow.
#[derive(Debug, Clone, Default)]
pub(super) struct Column<T>(Vec<Option<Box<[T]>>>);

impl<T: Copy + Default + PartialEq> Column<T> {
    /// The value at a place.
    pub(super) fn get(&self, place: usize) -> T {
        let block = self.0.get(place / BLOCK).and_then(Option::as_ref);
        block.map_or_else(T::default, |values| values[place % BLOCK])
    }

    /// Sets it.
    pub(super) fn set(&mut self, place: usize, value: T) {
        let block = place / BLOCK;
        if self.0.get(block).is_none_or(Option::is_none) {
            if value == T::default() {
                return;
            }
            self.0.resize(self.0.len().max(block + 1), None);
        }
        let values = self.0[block].get_or_insert_with(|| vec![T::default(); BLOCK].into());
        values[place % BLOCK] = value;
    }
}

/// A text for every place, one behind the other; empty where none was set.
#[derive(Debug, Clone, Default)]
pub(super) struct Texts {
    all: String,
    starts: Column<usize>,
    /// In bytes: none is as long as 4 GiB.
    lengths: Column<u32>,
}

impl Texts {
    /// The text at a place.
    pub(super) fn get(&self, place: usize) -> &str {
        &self.all[self.starts.get(place)..][..self.lengths.get(place) as usize]
    }

    /// Sets it.
    pub(super) fn set(&mut self, place: usize, text: &str) {
        if self.get(place) != text {
            self.starts.set(place, self.all.len());
            self.lengths.set(place, text.len() as u32);
            self.all.push_str(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_takes_memory_only_where_something_is() {
        let mut column = Column::default();
        column.set(7 * BLOCK, 0u32);
        assert!(column.0.is_empty());
        column.set(3 * BLOCK + 1, 5);
        column.set(1, 0);
        assert_eq!(column.0.iter().map(Option::is_some).collect::<Vec<_>>(), [false, false, false, true]);
        let place = 3 * BLOCK + 1;
        assert_eq!([0, 1, place - 1, place, place + 1, 9 * BLOCK].map(|p| column.get(p)), [0, 0, 0, 5, 0, 0]);
        column.set(place, 0);
        column.set(2, 6);
        assert_eq!([2, place].map(|p| column.get(p)), [6, 0]);
    }

    #[test]
    fn texts_come_in_any_order_and_are_replaced() {
        let mut texts = Texts::default();
        for (place, text) in [(2, "zwei"), (0, "null"), (1, "eins"), (2, "zwo"), (1, "eins"), (0, "")] {
            texts.set(place, text);
        }
        assert_eq!([0, 1, 2, 3].map(|p| texts.get(p)), ["", "eins", "zwo", ""]);
        assert_eq!(texts.all, "zweinulleinszwo", "what is the same is not kept again");
    }
}
