//! Every operation against a composed form in float64, and its gradients against central differences.
//!
//! Inputs are fresh random numbers in every run, so a failure may take several runs to show up again.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod attention;
mod checkpoint;
#[path = "../../examples/device_check/graphs.rs"]
mod graphs;
mod layers;
mod optimizer;
mod rows;

use candle_core::{DType, Device, Result, Tensor, Var};

/// Standard normal numbers in float64.
fn randn(shape: &[usize]) -> Tensor {
    Tensor::randn(0f64, 1f64, shape, &Device::Cpu).unwrap()
}

fn values(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Largest difference, relative to the largest value of `b` or 1.
fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (values(a), values(b));
    assert!(a.iter().all(|x| x.is_finite()), "not finite");
    let scale = b.iter().fold(1f64, |m, x| m.max(x.abs()));
    a.iter().zip(&b).fold(0f64, |m, (a, b)| m.max((a - b).abs())) / scale
}

/// Checks `f` in float64, float32 and bf16 against `composed` in float64, and against inputs laid out backwards.
fn check_forward(
    name: &str,
    inputs: &[Tensor],
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
    composed: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 5e-6), (DType::BF16, 2e-2)] {
        let cast: Vec<Tensor> = inputs.iter().map(|t| t.to_dtype(dtype).unwrap()).collect();
        let wide: Vec<Tensor> = cast.iter().map(|t| t.to_dtype(DType::F64).unwrap()).collect();
        let expected = composed(&wide).unwrap();
        let got = f(&cast).unwrap();
        let e = difference(&got, &expected);
        assert!(e < tolerance, "{name} {dtype:?}: difference {e:.1e}");
        let strided: Vec<Tensor> = cast.iter().map(reversed_layout).collect();
        let e = difference(&f(&strided).unwrap(), &got);
        assert!(e < tolerance, "{name} {dtype:?} with a strided layout: difference {e:.1e}");
    }
}

/// The same values with the dimensions laid out in reverse order, inside a larger buffer.
fn reversed_layout(t: &Tensor) -> Tensor {
    let n = t.rank();
    if n == 0 {
        return t.clone();
    }
    let order: Vec<usize> = (0..n).rev().collect();
    let reversed = t.permute(order.clone()).unwrap().contiguous().unwrap();
    let padded = Tensor::cat(&[&reversed, &reversed], 0).unwrap();
    padded.narrow(0, reversed.dims()[0], reversed.dims()[0]).unwrap().permute(order).unwrap()
}

/// Checks the gradients of every input of `f` in float64 against central differences along a random direction.
fn check_gradients(name: &str, inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let arguments: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let out = f(&arguments).unwrap();
    let weights = randn(out.dims());
    let loss = |inputs: &[Tensor]| -> f64 {
        (f(inputs).unwrap() * &weights).unwrap().sum_all().unwrap().to_scalar().unwrap()
    };
    let grads = (&out * &weights).unwrap().sum_all().unwrap().backward().unwrap();
    for (i, var) in vars.iter().enumerate() {
        let grad = grads.get(var).unwrap_or_else(|| panic!("{name}: no gradient for input {i}"));
        assert_eq!(grad.dims(), var.dims());
        for _ in 0..3 {
            let direction = randn(var.dims());
            let h = 1e-5;
            let at = |sign: f64| {
                let mut moved = inputs.to_vec();
                moved[i] = (&inputs[i] + (&direction * (sign * h)).unwrap()).unwrap();
                loss(&moved)
            };
            let numeric = (at(1.) - at(-1.)) / (2. * h);
            let exact: f64 = (grad * &direction).unwrap().sum_all().unwrap().to_scalar().unwrap();
            let e = (numeric - exact).abs() / (numeric.abs() + exact.abs() + 1.);
            assert!(e < 1e-6, "{name}: gradient {i} is {exact}, central difference {numeric}");
        }
    }
}

/// Checks that the gradients of `f` in `dtype` agree with those in float64.
fn check_gradients_in(
    name: &str,
    dtype: DType,
    tolerance: f64,
    inputs: &[Tensor],
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let rounded: Vec<Tensor> = inputs.iter().map(|t| t.to_dtype(dtype).unwrap()).collect();
    let run = |dtype: DType, weights: Option<Tensor>| {
        let vars: Vec<Var> =
            rounded.iter().map(|t| Var::from_tensor(&t.to_dtype(dtype).unwrap()).unwrap()).collect();
        let arguments: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let out = f(&arguments).unwrap().to_dtype(DType::F64).unwrap();
        let weights = weights.unwrap_or_else(|| randn(out.dims()));
        let grads = (&out * &weights).unwrap().sum_all().unwrap().backward().unwrap();
        let found: Vec<Tensor> = vars.iter().map(|v| grads.get(v).unwrap().clone()).collect();
        (found, weights)
    };
    let (wide, weights) = run(DType::F64, None);
    let (narrow, _) = run(dtype, Some(weights));
    for (i, (a, b)) in narrow.iter().zip(&wide).enumerate() {
        let e = difference(a, b);
        assert!(e < tolerance, "{name} {dtype:?}: gradient {i} differs by {e:.1e}");
    }
}
