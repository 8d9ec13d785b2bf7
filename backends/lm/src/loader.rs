//! Builds layers out of checked weights.

use crate::config::LinearSpec;
use crate::linear::{Linear, Weight};
use crate::stack::Stack;
use crate::tensor_store::SharedFiles;
use crate::{LmError, LoraSource, Precision, Result, Weights};
use candle_core::{DType, Device, Tensor};

/// Reads a model's tensors the way they are to be held.
pub(crate) struct Loader<'a> {
    pub(crate) weights: &'a Weights,
    pub(crate) lora: Option<LoraSource<'a>>,
    pub(crate) device: &'a Device,
    pub(crate) precision: Precision,
    shared: Option<SharedFiles>,
}

impl<'a> Loader<'a> {
    pub(crate) fn new(
        weights: &'a Weights,
        lora: Option<LoraSource<'a>>,
        device: &'a Device,
        precision: Precision,
    ) -> Result<Self> {
        if precision == Precision::Quantised && lora.as_ref().is_some_and(|l| l.params.is_trainable()) {
            let message = "training through quantised weights (products with them have no backward pass)";
            return Err(LmError::Unsupported(message.to_owned()));
        }
        let shared = SharedFiles::current(&weights.files());
        Ok(Self { weights, lora, device, precision, shared })
    }

    /// A tensor that is never quantised: norms, biases, positions.
    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor> {
        self.dense(name, self.precision.activations())?.dense().map_err(LmError::from)
    }

    /// A matrix.
    pub(crate) fn weight(&self, name: &str) -> Result<Weight> {
        match self.precision {
            Precision::Dense(dtype) => self.dense(name, dtype),
            Precision::Quantised => self.shared(name, "quantised", || {
                Ok(Weight::quantised(self.weights.load_quantised(name, self.device)?)?)
            }),
        }
    }

    /// As [`Loader::tensor`], or the trained tensor of that name where there is one.
    pub(crate) fn trainable_tensor(&mut self, name: &str) -> Result<Tensor> {
        self.trained(name)?.map_or_else(|| self.tensor(name), Ok)
    }

    /// As [`Loader::weight`], or the trained matrix of that name where there is one.
    pub(crate) fn trainable_weight(&mut self, name: &str) -> Result<Weight> {
        self.trained(name)?.map_or_else(|| self.weight(name), |t| Ok(Weight::Dense(t)))
    }

    fn trained(&mut self, name: &str) -> Result<Option<Tensor>> {
        let Some(source) = &mut self.lora else { return Ok(None) };
        let full = format!("{}{name}", source.prefix);
        match self.weights.tensors().get(name) {
            Some(info) if source.params.has(&full) => source.params.get(&full, &info.shape).map(Some),
            _ => Ok(None),
        }
    }

    fn dense(&self, name: &str, dtype: DType) -> Result<Weight> {
        self.shared(name, dtype.as_str(), || {
            Ok(Weight::Dense(self.weights.load(name, dtype, self.device)?))
        })
    }

    /// A tensor that another model may have loaded already.
    fn shared(&self, name: &str, held: &str, load: impl FnOnce() -> Result<Weight>) -> Result<Weight> {
        match &self.shared {
            Some(shared) => shared.get(name, held, self.device, load),
            None => load(),
        }
    }

    /// A linear layer with its adapter, where it has one.
    pub(crate) fn linear(&mut self, spec: &LinearSpec) -> Result<Linear> {
        let weight = self.weight(&format!("{}.weight", spec.module))?;
        self.linear_with(spec, weight)
    }

    /// As [`Loader::linear`]; on a GPU a dense matrix is held in the rows of `stack` from `row` on.
    pub(crate) fn linear_in(&mut self, spec: &LinearSpec, stack: &mut Stack, row: usize) -> Result<Linear> {
        let Precision::Dense(dtype) = self.precision else { return self.linear(spec) };
        if !self.device.is_cuda() {
            return self.linear(spec);
        }
        let name = format!("{}.weight", spec.module);
        let weight = self.shared(&name, dtype.as_str(), || {
            let own = self.weights.load(&name, dtype, self.device)?;
            Ok(Weight::Dense(stack.put(&own, row)?))
        })?;
        self.linear_with(spec, weight)
    }

    /// A linear layer whose matrix is given (tied to another).
    pub(crate) fn linear_with(&mut self, spec: &LinearSpec, weight: Weight) -> Result<Linear> {
        let bias = if spec.bias { Some(self.tensor(&format!("{}.bias", spec.module))?) } else { None };
        let lora = match &mut self.lora {
            Some(source) => source.of(spec)?,
            None => None,
        };
        Ok(Linear::new(weight, bias, lora))
    }
}
