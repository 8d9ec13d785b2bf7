//! Whole layers against the graphs of small operations.

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use e2llm_kernels::{Adapted, DecoderLayer, EncoderLayer, Mask, Seen, backward};

use super::graphs::{decoder_graph, encoder_graph};
use super::{difference, randn, values};

const SCALING: f64 = 2.;

/// Sizes of a linear, whether it has a bias, and the rank of its update.
#[derive(Clone, Copy)]
struct Spec {
    outputs: usize,
    inputs: usize,
    bias: bool,
    rank: usize,
}

impl Spec {
    /// A and B if there is an update, and the weight and the bias if there is one.
    fn tensors(self) -> (Vec<Tensor>, Vec<Tensor>) {
        let matrix = |n: usize, k: usize| (randn(&[n, k]) / (k as f64).sqrt()).unwrap();
        let mut trained = Vec::new();
        if self.rank > 0 {
            trained = vec![matrix(self.rank, self.inputs), matrix(self.outputs, self.rank)];
        }
        let mut frozen = vec![matrix(self.outputs, self.inputs)];
        if self.bias {
            frozen.push(randn(&[self.outputs]));
        }
        (trained, frozen)
    }
}

/// A layer to be checked: its linears, how many rows of how many positions it reads, and how it is computed.
struct Case {
    name: String,
    specs: Vec<Spec>,
    size: (usize, usize, usize),
    /// Frozen tensors behind those of the linears.
    others: Vec<Tensor>,
    draws: usize,
}

/// How a value is computed.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Graph,
    Whole,
    Again,
}

impl Case {
    /// Compares the forms in all types. How far rounding carries them differs from draw to draw, so there are several.
    fn check(&self, f: impl Fn(&Tensor, Vec<Adapted>, &[Tensor], Form) -> Result<Tensor>) {
        let draws: Vec<_> = (0..self.draws).map(|_| self.check_once(&f)).collect();
        for (i, dtype) in ["f32", "bf16"].into_iter().enumerate() {
            let ratio = draws.iter().map(|of_types| of_types[i].ln()).sum::<f64>() / draws.len() as f64;
            let limit = if draws.len() == 1 { 10f64 } else { 2. };
            assert!(ratio < limit.ln(), "{} {dtype}: {:.1} times the graph's error", self.name, ratio.exp());
        }
    }

    /// Compares the value, and the loss's gradients of `x` and everything that is trained. Returns how much further from float64 they
    /// are than the graph's, in float32 and in bf16.
    fn check_once(&self, f: &impl Fn(&Tensor, Vec<Adapted>, &[Tensor], Form) -> Result<Tensor>) -> [f64; 2] {
        let (b, t, width) = self.size;
        let x = randn(&[b, t, width]);
        let (mut trained, mut frozen) = (Vec::new(), Vec::new());
        for spec in &self.specs {
            let (update, rest) = spec.tensors();
            trained.extend(update);
            frozen.push(rest);
        }
        // Rounded once, so that all types compute the same.
        let rounded = |t: &Tensor| t.to_dtype(DType::BF16).unwrap().to_dtype(DType::F64).unwrap();
        let weights = randn(&[b, t, width]);
        let run = |dtype: DType, form: Form, trains_x: bool| -> Result<Vec<Tensor>> {
            let cast = |t: &Tensor| rounded(t).to_dtype(dtype);
            let master = if dtype == DType::BF16 { DType::F32 } else { dtype };
            let x = if trains_x { Var::from_tensor(&cast(&x)?)?.into_inner() } else { cast(&x)? };
            let vars = trained.iter().map(|t| Var::from_tensor(&rounded(t).to_dtype(master)?));
            let vars = vars.collect::<Result<Vec<_>>>()?;
            let mut next = vars.iter().map(|v| v.as_tensor().clone());
            let mut linears = Vec::new();
            for (spec, frozen) in self.specs.iter().zip(&frozen) {
                let mut update = || next.next().map_or_else(|| bail!("too few tensors"), Ok);
                let lora = if spec.rank > 0 { Some((update()?, update()?, SCALING)) } else { None };
                let bias = frozen.get(1).map(cast).transpose()?;
                linears.push(Adapted { weight: cast(&frozen[0])?, bias, lora });
            }
            let others = self.others.iter().map(cast).collect::<Result<Vec<_>>>()?;
            let y = f(&x, linears, &others, form)?;
            let loss = (y.to_dtype(DType::F64)? * &weights)?.sum_all()?;
            let grads = backward(&loss)?;
            let of_x = trains_x.then_some(&x);
            let all = of_x.into_iter().chain(vars.iter().map(Var::as_tensor));
            let mut found = vec![y.detach()];
            for t in all {
                let Some(gradient) = grads.get(t) else { bail!("{}: no gradient", self.name) };
                assert_eq!(gradient.dtype(), t.dtype());
                found.push(gradient.clone());
            }
            Ok(found)
        };
        let far = |found: &[Tensor], wanted: &[Tensor]| -> Vec<f64> {
            assert_eq!(found.len(), wanted.len());
            found.iter().zip(wanted).map(|(a, b)| difference(a, b)).collect()
        };
        let exact = run(DType::F64, Form::Graph, true).unwrap();
        for e in far(&run(DType::F64, Form::Whole, true).unwrap(), &exact) {
            assert!(e < 1e-11, "{}: {e:.1e}", self.name);
        }
        let typical = |dtype: DType, form: Form| {
            let found = run(dtype, form, true).unwrap();
            let all: Vec<f64> = found.iter().zip(&exact).map(|(a, b)| distance(a, b)).collect();
            all.iter().sum::<f64>() / all.len() as f64
        };
        // To the last bit, whatever is computed again and whether `x` takes a gradient.
        for dtype in [DType::F32, DType::BF16] {
            let kept = run(dtype, Form::Whole, true).unwrap();
            let again = run(dtype, Form::Again, true).unwrap();
            assert!(far(&again, &kept).iter().all(|e| *e == 0.), "{} {dtype:?} again", self.name);
            if !trained.is_empty() {
                let frozen = run(dtype, Form::Whole, false).unwrap();
                let others: Vec<_> = kept[..1].iter().chain(&kept[2..]).cloned().collect();
                assert!(far(&frozen, &others).iter().all(|e| *e == 0.), "{} {dtype:?}, x frozen", self.name);
            }
        }
        [DType::F32, DType::BF16].map(|dtype| typical(dtype, Form::Whole) / typical(dtype, Form::Graph))
    }
}

/// Root of the mean square of the difference, relative to that of `b` or a thousandth: gradients may be 0.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (values(a), values(b));
    let squares = |all: &mut dyn Iterator<Item = f64>| all.map(|x| x * x).sum::<f64>() / b.len() as f64;
    let difference = squares(&mut a.iter().zip(&b).map(|(a, b)| a - b));
    (difference / squares(&mut b.iter().copied()).max(1e-6)).sqrt()
}

fn lengths(rows: &[usize]) -> Tensor {
    Tensor::new(rows.iter().map(|&n| n as u32).collect::<Vec<_>>(), &Device::Cpu).unwrap()
}

/// Weights as tensors that positions behind a row's length do not reach.
fn within(y: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let (b, t, _) = y.dims3()?;
    let seen: Vec<f32> = (0..b * t).map(|i| if i % t < rows[i / t] { 1. } else { 0. }).collect();
    y.broadcast_mul(&Tensor::from_vec(seen, (b, t, 1), &Device::Cpu)?.to_dtype(y.dtype())?)
}

#[test]
fn decoder_layers_are_their_graphs() {
    let spec = |outputs, inputs, bias, rank| Spec { outputs, inputs, bias, rank };
    for (b, t, h, hkv, d, m, ranks, bias) in [
        (3, 37, 6, 2, 16, 80, [4; 7], false),
        (2, 21, 3, 3, 6, 31, [3, 0, 2, 0, 5, 0, 1], true),
        (1, 300, 4, 1, 8, 24, [0; 7], false),
        (30, 2, 2, 1, 24, 59, [2; 7], false),
        (9, 5, 2, 1, 10, 33, [0, 0, 0, 0, 0, 0, 7], false),
        // So wide that the rows of the batch go through one by one.
        (2, 30, 2, 1, 8, 70001, [2; 7], false),
    ] {
        let width = h * d;
        let (attended, keys) = (h * d, hkv * d);
        let angles = randn(&[t, d / 2]);
        let case = Case {
            name: format!("decoder {b}x{t}x{h}({hkv})x{d}"),
            specs: vec![
                spec(attended, width, bias, ranks[0]),
                spec(keys, width, bias, ranks[1]),
                spec(keys, width, bias, ranks[2]),
                spec(width, attended, false, ranks[3]),
                spec(m, width, false, ranks[4]),
                spec(m, width, false, ranks[5]),
                spec(width, m, false, ranks[6]),
            ],
            size: (b, t, width),
            others: vec![randn(&[width]), randn(&[width]), angles.cos().unwrap(), angles.sin().unwrap()],
            draws: if m > 1000 { 1 } else { 6 },
        };
        let rows: Vec<usize> = (0..b).map(|i| [t, t - t / 3, 0][i % 3]).collect();
        case.check(|x, linears, others, form| {
            let [input_norm, post_norm, cos, sin] = others else { bail!("four tensors") };
            let Ok(linears) = linears.try_into() else { bail!("seven linears") };
            let layer = DecoderLayer { input_norm, post_norm, linears, heads: h, kv_heads: hkv, eps: 1e-5 };
            let y = if form == Form::Graph {
                decoder_graph(&layer, x, [cos, sin], Mask::CausalKeys(&rows))?
            } else {
                let keep = form == Form::Whole;
                DecoderLayer::forward(&[layer], x, (cos, sin), Seen::Before(Some(&lengths(&rows))), keep)?
            };
            within(&y, &rows)
        });
    }
}

#[test]
fn encoder_layers_are_their_graphs() {
    let spec = |outputs, inputs, rank| Spec { outputs, inputs, bias: true, rank };
    for (b, t, h, d, m, ranks, count) in [
        (3, 37, 3, 16, 80, [4; 6], 1),
        (2, 21, 5, 7, 31, [3, 0, 2, 0, 5, 0], 2),
        (1, 300, 2, 8, 24, [0; 6], 1),
        (30, 2, 3, 15, 59, [2; 6], 2),
    ] {
        let width = h * d;
        let own = [(width, width), (width, width), (width, width), (width, width), (m, width), (width, m)];
        let of_layer = || own.into_iter().zip(ranks).map(|((n, k), rank)| spec(n, k, rank));
        let case = Case {
            name: format!("encoder {b}x{t}x{h}x{d}"),
            specs: (0..count).flat_map(|_| of_layer()).collect(),
            size: (b, t, width),
            others: (0..4).map(|_| randn(&[width])).collect(),
            draws: 6,
        };
        for rows in [vec![t; b], (0..b).map(|i| [t - t / 3, t, 0][i % 3]).collect()] {
            case.check(|x, linears, others, form| {
                let [w1, b1, w2, b2] = others else { bail!("four tensors") };
                let mut layers = Vec::new();
                for linears in linears.chunks(6) {
                    let Ok(linears) = linears.to_vec().try_into() else { bail!("six linears") };
                    let (attention_norm, norm) = ((w1, b1, 1e-6), (w2, b2, 1e-6));
                    layers.push(EncoderLayer { attention_norm, norm, linears, heads: h });
                }
                let y = if form == Form::Graph {
                    let mask = if rows.iter().all(|n| *n == t) { Mask::None } else { Mask::Keys(&rows) };
                    layers.iter().try_fold(x.clone(), |x, layer| encoder_graph(layer, &x, mask))?
                } else {
                    let lengths = lengths(&rows);
                    EncoderLayer::forward(&layers, x, Some(&lengths), form == Form::Whole)?
                };
                within(&y, &rows)
            });
        }
    }
}

#[test]
fn layers_that_do_not_fit_are_errors() {
    let x = randn(&[1, 3, 8]);
    let linear = |n: usize, k: usize| Adapted { weight: randn(&[n, k]), bias: None, lora: None };
    let norm = randn(&[8]);
    let layer = |inner: usize| EncoderLayer {
        attention_norm: (&norm, &norm, 1e-6),
        norm: (&norm, &norm, 1e-6),
        linears: [linear(8, 8), linear(8, 8), linear(8, 8), linear(8, 8), linear(12, 8), linear(8, inner)],
        heads: 2,
    };
    assert!(EncoderLayer::forward(&[layer(12)], &x, None, true).is_ok());
    assert!(EncoderLayer::forward(&[layer(11)], &x, None, true).is_err());
    assert!(EncoderLayer::forward(&[layer(12)], &x.to_dtype(DType::F32).unwrap(), None, true).is_err());
    assert!(EncoderLayer::forward(&[layer(12)], &x, Some(&lengths(&[3, 3])), true).is_err());
}
