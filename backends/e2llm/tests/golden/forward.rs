//! Hidden states, soft tokens, logits, losses and greedy answers.

use crate::case::{cases, chunks, scalar};

#[test]
fn golden_hidden_states_and_soft_tokens() {
    for case in cases("golden_hidden_states_and_soft_tokens") {
        for merged in [false, true] {
            let model = case.load(merged).model;
            let chunks = chunks(&case.reasoning);
            let (padded, lengths) = model.encoder().forward(&chunks).unwrap();
            for (i, chunk) in chunks.iter().enumerate() {
                let alone = model.encoder().forward(std::slice::from_ref(chunk)).unwrap().0;
                case.close(&format!("hidden.{i}"), &alone.squeeze(0).unwrap(), 1e-4);
                let in_batch = padded.get(i).unwrap().narrow(0, 0, lengths[i]).unwrap();
                case.close(&format!("hidden.{i}"), &in_batch, 1e-4);
            }
            case.close("soft", &model.soft_tokens(&chunks).unwrap(), 1e-4);
        }
    }
}

#[test]
fn golden_logits_and_losses() {
    for case in cases("golden_logits_and_losses") {
        let model = case.load(false).model;
        let lengths = model.inputs(&case.reasoning).unwrap().lengths;
        let (reasoning, logits) = model.loss(&case.reasoning).unwrap();
        for (i, &n) in lengths.iter().enumerate() {
            case.close(&format!("logits.{i}"), &logits.get(i).unwrap().narrow(0, 0, n).unwrap(), 1e-4);
        }
        let reconstruction = model.loss(&case.reconstruction).unwrap().0;
        let e = &case.expected;
        let total = scalar(&reasoning) + e.lambda * scalar(&reconstruction);
        let pairs = [
            (scalar(&reasoning), e.reasoning),
            (scalar(&reconstruction), e.reconstruction),
            (total, e.total),
            (scalar(&model.answer_loss(&case.reasoning).unwrap().mean().unwrap()), e.reasoning),
            (scalar(&model.answer_loss(&case.reconstruction).unwrap().mean().unwrap()), e.reconstruction),
        ];
        for (ours, theirs) in pairs {
            let error = ((ours - theirs) / theirs).abs();
            assert!(error <= 1e-5, "{}: {ours} and not {theirs}", case.folder.display());
        }
    }
}

#[test]
fn golden_greedy_ids() {
    for case in cases("golden_greedy_ids") {
        for merged in [false, true] {
            let model = case.load(merged).model;
            let ours: Vec<_> = case.reasoning.iter().map(|e| model.generate(e, 8).unwrap()).collect();
            assert_eq!(ours, case.expected.greedy, "{}", case.folder.display());
        }
    }
}
