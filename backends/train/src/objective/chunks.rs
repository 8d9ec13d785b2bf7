//! Which chunks an example reads.

use super::open::Data;
use crate::config::ContextChoice;
use crate::order::{below, generator};
use crate::{Objective, Part, Split};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

/// The chunks of each reconstruction item.
type Chunks = Rc<Vec<Range<usize>>>;

/// The reconstruction items of each split and window. Windows do not overlap.
#[derive(Default)]
pub(super) struct Windows(RefCell<BTreeMap<(Split, usize), Chunks>>);

impl Windows {
    pub(super) fn of(&self, data: &Data, split: Split, window: usize) -> Chunks {
        let make = || {
            let data = data.split(split);
            let of = |document: usize| {
                let all = data.chunks(document);
                all.clone().step_by(window).map(move |start| start..(start + window).min(all.end))
            };
            Rc::new((0..data.documents()).flat_map(of).collect())
        };
        Rc::clone(self.0.borrow_mut().entry((split, window)).or_insert_with(make))
    }

    /// The document that an item is about.
    pub(super) fn document(&self, data: &Data, part: Part, item: u32) -> String {
        if part.objective == Objective::Reasoning {
            return data.document_of(part.split, item);
        }
        let windows = self.of(data, part.split, part.window);
        let data = data.split(part.split);
        let document = windows.get(item as usize).map(|w| data.document_of_chunk(w.start));
        document.map_or_else(String::new, |d| data.name(d).to_owned())
    }

    /// An item for a message.
    pub(super) fn describe(&self, data: &Data, part: Part, item: u32) -> String {
        if part.objective == Objective::Reasoning {
            return data.describe_question(part.split, item);
        }
        let windows = self.of(data, part.split, part.window);
        windows.get(item as usize).map_or_else(
            || format!("window {item}"),
            |w| format!("chunks {}..{} of the {} split", w.start, w.end, part.split.name()),
        )
    }
}

impl Data {
    /// The chunks of a document that are read for a question; `seed` decides where a choice is random.
    pub(super) fn chosen(&self, split: Split, document: usize, question: u32, seed: u64) -> Vec<usize> {
        let all = self.split(split).chunks(document);
        let most = self.settings.max_chunks;
        let Some(excess) = all.len().checked_sub(most).filter(|n| *n > 0) else {
            return all.collect();
        };
        match self.settings.context {
            ContextChoice::Head => all.take(most).collect(),
            ContextChoice::Ends => {
                let head = most.div_ceil(2);
                all.clone().take(head).chain(all.skip(head + excess)).collect()
            }
            ContextChoice::Random => {
                let mut rng = generator(seed, "context", u64::from(question));
                all.skip(below(&mut rng, excess + 1)).take(most).collect()
            }
        }
    }

    /// What is cut of the training split where `max_chunks` are read of a context.
    pub(super) fn chunk_cuts(&self) -> Vec<String> {
        let most = self.settings.max_chunks;
        self.cuts(|d| self.split(Split::Train).chunks(d).len() > most)
    }
}
