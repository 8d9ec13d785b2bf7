//! Runs an operation on both devices and compares.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor, Var};

pub(crate) struct Checker {
    pub(crate) gpu: Device,
    pub(crate) filter: Option<String>,
    /// Size that values are compared with at least, for results that cancel to zero.
    pub(crate) floor: f64,
    /// Error that bf16 is allowed.
    pub(crate) rounding: f64,
    /// The largest error of the last check.
    pub(crate) largest: f64,
    /// What the loss weighs outputs by, kept while their shape stays, so that all forms of a layer have the same gradients.
    pub(crate) weights: Option<Tensor>,
    pub(crate) failed: usize,
    pub(crate) ran: usize,
}

pub(crate) fn randn(shape: &[usize]) -> Result<Tensor> {
    Tensor::randn(0f32, 1f32, shape, &Device::Cpu)
}

/// Root mean square of the differences, relative to that of `b` or to `floor`; infinite if something is not finite.
pub(crate) fn difference(a: &Tensor, b: &Tensor, floor: f64) -> Result<f64> {
    if a.dims() != b.dims() {
        return Ok(f64::INFINITY);
    }
    let wide = |t: &Tensor| -> Result<Vec<f64>> {
        t.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
    };
    let (a, b) = (wide(a)?, wide(b)?);
    let error: f64 = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum();
    let norm = b.iter().map(|b| b * b).sum::<f64>().max(floor * floor * b.len() as f64);
    Ok(if error.is_finite() { (error / norm.max(1e-12)).sqrt() } else { f64::INFINITY })
}

impl Checker {
    /// Leaves NaN in the memory that the next calls are given.
    pub(crate) fn poison(&self) -> Result<()> {
        let mut held = Vec::new();
        for bytes in [1 << 10, 1 << 14, 1 << 17, 1 << 20, 1 << 23] {
            for _ in 0..4 {
                held.push(Tensor::full(f32::NAN, bytes / 4, &self.gpu)?);
            }
        }
        drop(held);
        self.gpu.synchronize()
    }

    pub(crate) fn skips(&self, name: &str) -> bool {
        self.filter.as_ref().is_some_and(|filter| !name.contains(filter.as_str()))
    }

    pub(crate) fn report(&mut self, name: &str, errors: &[f64], tolerance: f64) {
        self.ran += 1;
        self.largest = errors.iter().fold(self.largest, |most, &e| most.max(e));
        let ok = errors.iter().all(|&e| e < tolerance);
        self.failed += usize::from(!ok);
        let errors: Vec<String> = errors.iter().map(|e| format!("{e:.1e}")).collect();
        println!("{} {name}: {} (below {tolerance:.0e})", if ok { "ok  " } else { "FAIL" }, errors.join(" "));
    }

    /// Runs `f` on the CPU in float32 and on the GPU in both types, on inputs rounded to the GPU's type, and compares
    /// the output and the gradient of each of the first `trained` inputs.
    pub(crate) fn check(
        &mut self,
        name: &str,
        inputs: &[Tensor],
        trained: usize,
        f: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<()> {
        if self.skips(name) {
            return Ok(());
        }
        self.largest = 0.;
        let mut weights = self.weights.take();
        for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::BF16, self.rounding)] {
            let cast = |t: &Tensor, dtype| if t.dtype().is_int() { Ok(t.clone()) } else { t.to_dtype(dtype) };
            let rounded = inputs.iter().map(|t| cast(t, dtype)).collect::<Result<Vec<_>>>()?;
            let mut run = |device: &Device, dtype| -> Result<Vec<Tensor>> {
                let mut arguments = Vec::new();
                for (i, t) in rounded.iter().enumerate() {
                    let t = cast(t, dtype)?.to_device(device)?;
                    arguments.push(if i < trained { Var::from_tensor(&t)?.into_inner() } else { t });
                }
                if device.is_cuda() {
                    self.poison()?;
                }
                let y = f(&arguments)?;
                if weights.as_ref().is_none_or(|w| w.dims() != y.dims()) {
                    weights = Some(randn(y.dims())?);
                }
                let Some(w) = &weights else { candle_core::bail!("no weights") };
                let loss = (y.to_dtype(DType::F32)? * w.to_device(device)?)?.sum_all()?;
                let grads = e2llm_kernels::backward(&loss)?;
                let mut all = vec![y];
                for (i, a) in arguments[..trained].iter().enumerate() {
                    match grads.get(a) {
                        Some(g) => all.push(g.clone()),
                        None => candle_core::bail!("{name}: no gradient for input {i}"),
                    }
                }
                Ok(all)
            };
            let expected = run(&Device::Cpu, DType::F32)?;
            let gpu = self.gpu.clone();
            let got = run(&gpu, dtype)?;
            let errors = got
                .iter()
                .zip(&expected)
                .map(|(a, b)| difference(a, b, self.floor))
                .collect::<Result<Vec<_>>>()?;
            self.report(&format!("{name} {dtype:?}"), &errors, tolerance);
        }
        self.weights = weights;
        Ok(())
    }

    /// Prints the time of a call on the GPU, and what it moves or computes per second.
    pub(crate) fn time(&self, name: &str, work: f64, unit: &str, f: impl Fn() -> Result<()>) -> Result<()> {
        const CALLS: usize = 20;
        if self.skips(&format!("time {name}")) {
            return Ok(());
        }
        for _ in 0..3 {
            f()?;
        }
        self.gpu.synchronize()?;
        let mut times = Vec::new();
        for _ in 0..5 {
            let start = Instant::now();
            for _ in 0..CALLS {
                f()?;
            }
            self.gpu.synchronize()?;
            times.push(start.elapsed().as_secs_f64() / CALLS as f64);
        }
        times.sort_by(f64::total_cmp);
        println!("time {name}: {:.3} ms, {:.0} {unit}", times[2] * 1e3, work / times[2]);
        Ok(())
    }
}
