//! New positions read behind remembered ones, layer by layer, against the graph of small operations.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};
use e2llm_kernels::{
    CachedLayer, CachedPass, Cross, Mask, Plain, Positions, RowLengths, Span, attention, linear, rms_norm,
    rope, silu_mul, store_last,
};

use crate::checker::{Checker, randn};
use crate::graphs::split;

/// Where the new positions stand: `rows` of one sequence behind `offset`, the last of each of several, or the next ones of
/// several, of which the memory has one more. `Beyond` is the first where nothing ahead of a place is seen.
enum Case {
    Behind(usize, usize),
    Beyond { first: usize, offset: usize, rows: usize },
    Last(Vec<usize>),
    Spans(Vec<Span>),
}

/// Next positions of sequences in the reverse order of the memory's: each as many behind as many.
fn spans(all: &[(usize, usize)]) -> Case {
    let span = |(i, &(positions, offset))| Span { sequence: all.len() - i, offset, positions };
    Case::Spans(all.iter().enumerate().map(span).collect())
}

pub(crate) fn cached(c: &mut Checker) -> Result<()> {
    for (h, hkv, d, m, bias) in [(9, 3, 64, 1536, false), (4, 1, 32, 104, true), (32, 8, 128, 4096, false)] {
        let cases = [
            Case::Behind(0, 1),
            Case::Behind(41, 1),
            Case::Behind(700, 3),
            Case::Behind(0, 130),
            // Three tiles of 128 queries of each head against several of keys.
            Case::Behind(397, 301),
            Case::Behind(333, 17),
            Case::Behind(5, 64),
            Case::Behind(700, 8),
            Case::Beyond { first: 3, offset: 41, rows: 1 },
            Case::Beyond { first: 120, offset: 600, rows: 9 },
            Case::Beyond { first: 77, offset: 500, rows: 211 },
            Case::Last(vec![1, 700, 333]),
            Case::Last(vec![5, 2, 1, 4, 3, 257]),
            Case::Last((1..30).map(|i| 29 * i).collect()),
            spans(&[(1, 0), (2, 700)]),
            spans(&[(17, 0), (1, 5), (30, 333)]),
            spans(&[(130, 0), (7, 0), (64, 300), (1, 899), (211, 3)]),
        ];
        for case in cases {
            check(c, (h, hkv, d, m, bias), &case, None)?;
        }
        for (offset, rows, states) in [(0, 1, 1), (41, 1, 700), (700, 3, 37), (333, 17, 129), (0, 211, 333)] {
            check(c, (h, hkv, d, m, bias), &Case::Behind(offset, rows), Some(states))?;
        }
        check(c, (h, hkv, d, m, bias), &Case::Beyond { first: 5, offset: 60, rows: 2 }, Some(9))?;
    }
    Ok(())
}

fn check(
    c: &mut Checker,
    (h, hkv, d, m, with_bias): (usize, usize, usize, usize, bool),
    case: &Case,
    states: Option<usize>,
) -> Result<()> {
    let (width, room) = (h * d, 900);
    let (name, sequences, rows) = match case {
        Case::Behind(offset, rows) => (format!("{rows} behind {offset}"), 1, *rows),
        Case::Beyond { first, offset, rows } => (format!("{rows} behind {offset} from {first} on"), 1, *rows),
        Case::Last(lengths) => (format!("last of {} rows", lengths.len()), lengths.len(), lengths.len()),
        Case::Spans(spans) => {
            let rows = spans.iter().map(|s| s.positions).sum();
            (format!("{rows} of {} sequences", spans.len()), spans.len() + 1, rows)
        }
    };
    let of_states = states.map_or(String::new(), |n| format!(" beside {n} states"));
    let name = format!("cached layer {h}({hkv})x{d} {name}{of_states}");
    if c.skips(&name) {
        return Ok(());
    }
    let (q, kv) = (h * d, hkv * d);
    let sizes = [(q, width), (kv, width), (kv, width), (width, q), (m, width), (m, width), (width, m)];
    let angles = randn(&[rows, d / 2])?;
    let mut inputs = vec![
        randn(&[1, rows, width])?,
        randn(&[sequences, hkv, room, d])?,
        randn(&[sequences, hkv, room, d])?,
        angles.cos()?,
        angles.sin()?,
        randn(&[width])?,
        randn(&[width])?,
    ];
    // Those of linears that read the same input stand one below the other.
    for group in [&sizes[..3], &sizes[3..4], &sizes[4..6], &sizes[6..]] {
        let (rows, k) = (group.iter().map(|(n, _)| n).sum(), group[0].1);
        inputs.push((randn(&[rows, k])? / (k as f64).sqrt())?);
        inputs.push(randn(&[rows])?);
    }
    let of_cross = inputs.len();
    if let Some(n) = states {
        inputs.push(randn(&[width])?);
        inputs.push((randn(&[q, width])? / (width as f64).sqrt())?);
        inputs.push((randn(&[width, q])? / (q as f64).sqrt())?);
        inputs.push(randn(&[1, hkv, n, d])?);
        inputs.push(randn(&[1, hkv, n, d])?);
    }
    c.check(&name, &inputs, 0, |t| {
        let whole = t[0].device().is_cuda() && t[0].dtype() == DType::BF16;
        // Copies, or the next type would find the positions of this one.
        let (keys, values) = (t[1].force_contiguous()?, t[2].force_contiguous()?);
        // Neither what is before those seen nor what is behind them may be looked at.
        let hide = |row: usize, places: Range<usize>| -> Result<()> {
            if places.is_empty() {
                return Ok(());
            }
            let unseen = Tensor::full(f32::NAN, (1, hkv, places.len(), d), t[0].device())?;
            let unseen = unseen.to_dtype(t[0].dtype())?;
            for memory in [&keys, &values] {
                memory.narrow(0, row, 1)?.slice_set(&unseen, 2, places.start)?;
            }
            Ok(())
        };
        match case {
            Case::Beyond { first, .. } => hide(0, 0..*first)?,
            Case::Behind(offset, rows) => hide(0, offset + rows..room)?,
            Case::Last(lengths) if whole => {
                lengths.iter().enumerate().try_for_each(|(i, n)| hide(i, *n..room))?;
            }
            // The graph multiplies all of it by weights that may be 0; and of several sequences all is compared.
            Case::Last(_) | Case::Spans(_) => (),
        }
        let cross = states.map(|_| {
            let [norm, q, o, keys, values] = [0, 1, 2, 3, 4].map(|i| &t[of_cross + i]);
            Cross { norm, q, o, keys, values }
        });
        // With biases they are apart.
        let own = |stack: usize, row, n| -> Result<(Tensor, Tensor)> {
            let [weight, bias] = [0, 1].map(|i| t[7 + 2 * stack + i].narrow(0, row, n));
            Ok(if with_bias {
                (weight?.force_contiguous()?, bias?.force_contiguous()?)
            } else {
                (weight?, bias?)
            })
        };
        let all = [
            own(0, 0, q)?,
            own(0, q, kv)?,
            own(0, q + kv, kv)?,
            own(1, 0, width)?,
            own(2, 0, m)?,
            own(2, m, m)?,
            own(3, 0, width)?,
        ];
        let plain = |i: usize| Plain { weight: &all[i].0, bias: (with_bias && i < 3).then_some(&all[i].1) };
        let linears = [0, 1, 2, 3, 4, 5, 6].map(plain);
        let layer = CachedLayer { input_norm: &t[5], post_norm: &t[6], linears, cross, eps: 1e-5 };
        let lengths = match case {
            Case::Behind(offset, rows) => vec![offset + rows],
            Case::Beyond { first, offset, rows } => vec![first + offset + rows],
            Case::Last(lengths) => lengths.clone(),
            Case::Spans(spans) => spans.iter().map(|s| s.offset + s.positions).collect(),
        };
        let lengths = RowLengths::new(lengths, t[0].device())?;
        let y = if whole {
            let positions = match case {
                Case::Behind(offset, _) => Positions::Behind(*offset),
                Case::Beyond { first, offset, .. } => Positions::Beyond { first: *first, offset: *offset },
                Case::Last(_) => Positions::Last(&lengths),
                Case::Spans(spans) => Positions::Spans(spans),
            };
            let pass = CachedPass::new(&t[0], d, &layer, (&t[3], &t[4]), positions)?;
            pass.layer(&layer, &keys, &values)?;
            pass.finish(t[0].dims())?
        } else {
            graph(&layer, &t[0], (&t[3], &t[4]), (&keys, &values), case, &lengths)?
        };
        // What was remembered, too.
        let new = |cache: &Tensor| -> Result<Tensor> {
            match case {
                Case::Behind(offset, rows) => cache.narrow(2, *offset, *rows)?.flatten_all(),
                Case::Beyond { first, .. } => cache.narrow(2, *first, room - first)?.flatten_all(),
                Case::Last(lengths) => {
                    let each = lengths.iter().enumerate();
                    let each = each.map(|(i, n)| cache.narrow(0, i, 1)?.narrow(2, n - 1, 1)?.flatten_all());
                    Tensor::cat(&each.collect::<Result<Vec<_>>>()?, 0)
                }
                // All of it: nothing else may have been written.
                Case::Spans(_) => cache.flatten_all(),
            }
        };
        Tensor::cat(&[y.flatten_all()?, new(&keys)?, new(&values)?], 0)
    })
}

/// The same as a graph of small operations.
fn graph(
    layer: &CachedLayer<'_>,
    x: &Tensor,
    (cos, sin): (&Tensor, &Tensor),
    (keys, values): (&Tensor, &Tensor),
    case: &Case,
    lengths: &RowLengths,
) -> Result<Tensor> {
    let [q, k, v, o, gate, up, down] = &layer.linears;
    let apply = |l: &Plain<'_>, x: &Tensor| linear(x, l.weight, l.bias);
    let d = 2 * cos.dim(1)?;
    let scale = 1. / (d as f64).sqrt();
    let y = rms_norm(x, layer.input_norm, layer.eps)?;
    let q = rope(&split(&apply(q, &y)?, d)?, cos, sin)?;
    let k = rope(&split(&apply(k, &y)?, d)?, cos, sin)?;
    let v = split(&apply(v, &y)?, d)?;
    let longest = lengths.longest();
    let y = match case {
        Case::Behind(offset, _) => {
            keys.slice_set(&k.contiguous()?, 2, *offset)?;
            values.slice_set(&v.contiguous()?, 2, *offset)?;
            let (k, v) = (keys.narrow(2, 0, longest)?, values.narrow(2, 0, longest)?);
            attention(&q, &k, &v, Mask::Causal { offset: *offset }, scale)?
        }
        Case::Beyond { first, offset, rows } => {
            keys.slice_set(&k.contiguous()?, 2, first + offset)?;
            values.slice_set(&v.contiguous()?, 2, first + offset)?;
            let seen = |t: &Tensor| t.narrow(2, *first, offset + rows);
            attention(&q, &seen(keys)?, &seen(values)?, Mask::Causal { offset: *offset }, scale)?
        }
        Case::Last(_) => {
            store_last(keys, &k.transpose(0, 2)?, lengths)?;
            store_last(values, &v.transpose(0, 2)?, lengths)?;
            let (k, v) = (keys.narrow(2, 0, longest)?, values.narrow(2, 0, longest)?);
            attention(&q.transpose(0, 2)?, &k, &v, Mask::Rows(lengths), scale)?.transpose(0, 2)?
        }
        Case::Spans(spans) => {
            let (mut start, mut attended) = (0, Vec::new());
            for &Span { sequence, offset, positions } in spans {
                let own = |t: &Tensor| t.narrow(2, start, positions)?.contiguous();
                let cache = |t: &Tensor| t.narrow(0, sequence, 1);
                cache(keys)?.slice_set(&own(&k)?, 2, offset)?;
                cache(values)?.slice_set(&own(&v)?, 2, offset)?;
                let (k, v) = (
                    cache(keys)?.narrow(2, 0, offset + positions)?,
                    cache(values)?.narrow(2, 0, offset + positions)?,
                );
                attended.push(attention(&own(&q)?, &k, &v, Mask::Causal { offset }, scale)?);
                start += positions;
            }
            Tensor::cat(&attended, 2)?
        }
    };
    let mut x = (x + apply(o, &y.transpose(1, 2)?.flatten_from(2)?)?)?;
    if let Some(Cross { norm, q, o, keys, values }) = layer.cross {
        let q = split(&linear(&rms_norm(&x, norm, layer.eps)?, q, None)?, d)?;
        let y = attention(&q, keys, values, Mask::None, scale)?;
        x = (&x + linear(&y.transpose(1, 2)?.flatten_from(2)?, o, None)?)?;
    }
    let y = rms_norm(&x, layer.post_norm, layer.eps)?;
    &x + apply(down, &silu_mul(&apply(gate, &y)?, &apply(up, &y)?)?)?
}
