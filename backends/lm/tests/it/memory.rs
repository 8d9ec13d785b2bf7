//! Memories and readers against one pass over everything.

use crate::support::{distance, folder, llama_config, llama_json, never};
use candle_core::{DType, Device, Result, Tensor};
use e2llm_lm::{
    Generation, Heads, KvCache, Llama, Memory, Precision, Reader, Rope, Segment, Weights, generate,
    generate_with, prefill, score_continuations, score_continuations_with, tail_log_probs, token_log_probs,
};

fn llama() -> Llama {
    let config = llama_config(&llama_json());
    let folder = folder(&llama_json(), &config.tensors());
    let weights = Weights::open(folder.path()).unwrap();
    Llama::load(&config, &weights, None, &Device::Cpu, Precision::Dense(DType::F64)).unwrap()
}

fn ids(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 7 + i * i) % 64).collect()
}

#[test]
fn positions_nobody_asks_for_leave_their_keys_and_values() {
    let llama = llama();
    // More than two blocks, and a last one of a single position.
    for n in [1, 2, 30, 1025, 1100] {
        let all = ids(n + 1);
        let whole = llama.forward_hidden(&llama.embed(&all).unwrap(), None, None).unwrap();
        let mut cache = KvCache::new(0);
        let last = prefill(&llama, &[Segment::Ids(all[..n].to_vec())], &mut cache, &never).unwrap();
        assert_eq!((last.dims(), cache.offset()), (&[1, 1, 32][..], n));
        assert!(distance(&last, &whole.narrow(1, n - 1, 1).unwrap()) < 1e-12);
        let x = llama.embed(&all[n..]).unwrap();
        let next = llama.forward_hidden(&x, None, Some(&mut cache)).unwrap();
        assert!(distance(&next, &whole.narrow(1, n, 1).unwrap()) < 1e-12, "{n} positions");
    }
}

/// Small blocks, and a note of what was called.
struct Watched {
    inner: KvCache,
    blocks: Vec<usize>,
    prompts: usize,
}

impl Memory for Watched {
    fn offset(&self) -> usize {
        self.inner.offset()
    }

    fn block(&self) -> usize {
        7
    }

    fn attend(&mut self, layer: usize, heads: &Heads, rope: &Rope) -> Result<Tensor> {
        self.inner.attend(layer, heads, rope)
    }

    fn advance(&mut self, t: usize) {
        self.inner.advance(t);
        self.blocks.push(t);
    }

    fn prompt_read(&mut self) -> Result<()> {
        self.prompts += 1;
        Ok(())
    }

    fn fork(&self) -> Result<Box<dyn Memory>> {
        self.inner.fork()
    }
}

fn watched() -> Watched {
    Watched { inner: KvCache::new(0), blocks: Vec::new(), prompts: 0 }
}

#[test]
fn a_memory_decides_the_blocks_and_hears_of_the_prompts_end() {
    let llama = llama();
    let prompt = [Segment::Ids(ids(20))];
    let mut memory = watched();
    let hidden = prefill(&llama, &prompt, &mut memory, &never).unwrap();
    assert_eq!((memory.blocks.as_slice(), memory.prompts), ([7, 7, 6].as_slice(), 1));
    let whole = prefill(&llama, &prompt, &mut KvCache::new(20), &never).unwrap();
    assert!(distance(&hidden, &whole) < 1e-12);

    let settings = Generation { max_new_tokens: 5, ..Generation::default() };
    let plain = generate(&llama, None, &[], &prompt, &settings, &never).unwrap();
    let mut memory = watched();
    let through = generate_with(&mut memory, &llama, None, &[], &prompt, &settings, &never).unwrap();
    assert_eq!(plain.ids, through.ids);
    assert_eq!((memory.blocks.as_slice(), memory.prompts), ([7, 7, 6, 1, 1, 1, 1].as_slice(), 1));

    let choices = [vec![3], vec![5, 9, 11], vec![5, 1]];
    let plain = score_continuations(&llama, &prompt, &choices, &never).unwrap();
    let through = score_continuations_with(&mut watched(), &llama, &prompt, &choices, &never).unwrap();
    for (a, b) in plain.iter().zip(through) {
        assert!((a - b).abs() < 1e-10);
    }
}

#[test]
fn a_fork_leaves_its_origin_as_it_is() {
    let llama = llama();
    let text = ids(300);
    let mut memory = KvCache::new(0);
    prefill(&llama, &[Segment::Ids(text[..290].to_vec())], &mut memory, &never).unwrap();
    let next = |memory: &mut dyn Memory, id: u32| {
        llama.forward_hidden(&llama.embed(&[id]).unwrap(), None, Some(memory)).unwrap()
    };
    let expected = {
        let mut fresh = KvCache::new(0);
        prefill(&llama, &[Segment::Ids([&text[..290], &[4]].concat())], &mut fresh, &never).unwrap()
    };
    for _ in 0..2 {
        let mut fork = memory.fork().unwrap();
        assert!(distance(&next(&mut *fork, 4), &expected) < 1e-10);
        next(&mut *fork, 5);
        assert_eq!((fork.offset(), memory.offset()), (292, 290));
    }
    assert!(distance(&next(&mut memory, 4), &expected) < 1e-10);
}

#[test]
fn runs_are_as_likely_as_the_whole() {
    let llama = llama();
    let text = ids(700);
    let whole = token_log_probs(&llama, &text, &never).unwrap();
    let mut reader = Reader::new(&llama, 0);
    assert!(reader.read(&text, &never).is_err(), "nothing stands before the first");
    assert!(reader.read(&[], &never).unwrap().is_empty());
    // Back to where ids were skipped, before and after they were read.
    reader.skip(&text[..1]);
    let first = reader.bookmark();
    reader.skip(&[7; 3]);
    reader.go_back(&first);
    reader.skip(&text[1..3]);
    let third = reader.bookmark();
    let longer = reader.read(&text[3..9], &never).unwrap();
    reader.go_back(&third);
    for (got, want) in reader.read(&text[3..7], &never).unwrap().iter().zip(&longer) {
        assert!((got - want).abs() < 1e-9, "{got} {want}");
    }
    reader.go_back(&first);
    let mut got = reader.read(&text[1..600], &never).unwrap();
    let mark = reader.bookmark();
    got.extend(reader.read(&text[600..601], &never).unwrap());
    reader.skip(&[9; 40]);
    reader.go_back(&mark);
    got.truncate(599);
    got.extend(reader.read(&text[600..], &never).unwrap());
    assert_eq!(got.len(), whole.len());
    for (got, want) in got.iter().zip(&whole) {
        assert!((got - want).abs() < 1e-9, "{got} {want}");
    }
}

#[test]
fn texts_side_by_side_are_as_likely_as_alone() {
    let llama = llama();
    let text = ids(900);
    // More than one batch, several lengths, one text of which nothing is asked.
    let texts: Vec<(Vec<u32>, usize)> =
        [(700, 1), (650, 640), (2, 1), (900, 500), (30, 30), (699, 3), (31, 20)]
            .map(|(n, first)| (text[text.len() - n..].to_vec(), first))
            .to_vec();
    let got = tail_log_probs(&llama, &texts, &never).unwrap();
    for ((ids, first), got) in texts.iter().zip(&got) {
        let whole = token_log_probs(&llama, ids, &never).unwrap();
        assert_eq!(got.len(), ids.len() - first);
        for (got, want) in got.iter().zip(&whole[first - 1..]) {
            assert!((got - want).abs() < 1e-9, "{got} {want}");
        }
    }
    assert!(tail_log_probs(&llama, &[(vec![1, 2], 0)], &never).is_err(), "nothing stands before the first");
    assert!(tail_log_probs(&llama, &[(vec![1, 1 << 20], 1)], &never).is_err(), "not in the vocabulary");
}
