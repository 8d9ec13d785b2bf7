//! Measures a decoder or an encoder: `speed decoder PATH [f32|bf16|q]`, `speed encoder FOLDER [f32|bf16]`.

use candle_core::Device;
use e2llm_lm::{DecoderModel, EncoderFiles, Generation, KvCache, Precision, Segment, generate, prefill};
use std::error::Error;
use std::path::Path;
use std::time::Instant;

const PROMPTS: [usize; 3] = [176, 512, 2048];
const NEW_TOKENS: usize = 128;
const CHUNKS: (usize, usize) = (32, 128);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (kind, path, precision) = match arguments.as_slice() {
        [kind, path] => (kind, path, "f32"),
        [kind, path, precision] => (kind, path, precision.as_str()),
        _ => return Err("usage: speed decoder|encoder PATH [f32|bf16|q]".into()),
    };
    let precision: Precision = precision.parse()?;
    e2llm_kernels::keep_freed_memory(&Device::Cpu)?;
    match kind.as_str() {
        "decoder" => decoder(Path::new(path), precision),
        "encoder" => encoder(Path::new(path), precision),
        other => Err(format!("`{other}` is neither decoder nor encoder").into()),
    }
}

fn decoder(path: &Path, precision: Precision) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let model = DecoderModel::load(path, &Device::Cpu, precision)?;
    println!("{precision} load {:.2} s", start.elapsed().as_secs_f64());
    let text = "The project manager opened the meeting and asked everyone about the budget. ".repeat(400);
    let ids = model.tokenizer.encode(&text, true)?;
    let never = || false;
    for n in PROMPTS {
        let prompt = [Segment::Ids(ids[..n].to_vec())];
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            let start = Instant::now();
            let hidden = prefill(&model.llama, &prompt, &mut KvCache::new(n), &never)?;
            model.llama.logits(&hidden)?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!("{precision} prefill {n:5} tokens {:8.0} tokens/s ({:.0} ms)", n as f64 / best, best * 1e3);
        let settings = Generation { max_new_tokens: NEW_TOKENS, ..Generation::default() };
        let out = generate(&model.llama, None, &[], &prompt, &settings, &never)?;
        let rate = (out.ids.len() - 1) as f64 / out.decode_time.as_secs_f64();
        println!("{precision} decode behind {n:5} {rate:8.1} tokens/s");
    }
    Ok(())
}

fn encoder(path: &Path, precision: Precision) -> Result<(), Box<dyn Error>> {
    let encoder = EncoderFiles::open(path)?.load(&Device::Cpu, precision)?;
    let (chunks, length) = CHUNKS;
    let ids: Vec<Vec<u32>> =
        (0..chunks).map(|c| (0..length).map(|i| 2000 + (c * 31 + i * 7) as u32 % 20000).collect()).collect();
    let mut best = f64::INFINITY;
    for _ in 0..10 {
        let start = Instant::now();
        encoder.forward(&ids)?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    let rate = (chunks * length) as f64 / best;
    println!("{precision} encode {chunks} x {length}: {rate:.0} tokens/s ({:.0} ms)", best * 1e3);
    Ok(())
}
