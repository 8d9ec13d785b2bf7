//! The learning rate: linear warm-up, then a cosine.

use crate::config::OptimizerConfig;
use std::f64::consts::PI;

/// Learning rate of a step (from 0) of `total`.
pub fn learning_rate(config: &OptimizerConfig, step: usize, total: usize) -> f64 {
    let warmup = config.warmup_steps.min(total);
    if step < warmup {
        return config.lr * (step + 1) as f64 / warmup as f64;
    }
    let done = (step - warmup) as f64 / (total - warmup).max(1) as f64;
    let falling = 0.5 * (1.0 + (PI * done).cos());
    config.lr * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * falling)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_and_falls() {
        let c = OptimizerConfig { lr: 2.0, warmup_steps: 4, min_lr_ratio: 0.5, ..Default::default() };
        let all: Vec<_> = (0..12).map(|s| learning_rate(&c, s, 12)).collect();
        assert_eq!(all[..5], [0.5, 1.0, 1.5, 2.0, 2.0]);
        assert!((all[8] - 1.5).abs() < 1e-12, "half way down");
        assert!(all[5..].windows(2).all(|w| w[1] < w[0]) && all[11] > 1.0);
        let constant = OptimizerConfig { warmup_steps: 0, min_lr_ratio: 1.0, ..c };
        assert!((0..12).all(|s| learning_rate(&constant, s, 12) == 2.0));
    }
}
