//! Tokenizers out of GGUF metadata (`tokenizer.ggml.*`): byte-level BPE only.

use crate::{Gguf, LmError, Result};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, Tokenizer};

/// `tokenizer.ggml.token_type` of tokens that are not text.
const CONTROL: i64 = 3;
/// `tokenizer.ggml.token_type` of tokens added to a vocabulary as whole words.
const USER_DEFINED: i64 = 4;

/// How Llama 3 splits text before BPE.
const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// How Qwen 2 does: digits stand alone.
const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Builds the tokenizer a GGUF file describes.
pub(crate) fn build(gguf: &Gguf) -> Result<Tokenizer> {
    let wrong = |message: String| LmError::file(gguf.path(), message);
    let failed = |e: tokenizers::Error| wrong(format!("its tokenizer cannot be built: {e}"));
    let model = gguf.text("tokenizer.ggml.model")?;
    if model != "gpt2" {
        let hint = "use the model's HF folder with its tokenizer.json";
        return Err(wrong(format!("tokenizer model `{model}` is not supported (gpt2): {hint}")));
    }
    let tokens = gguf.texts("tokenizer.ggml.tokens")?;
    let kinds = gguf.integers("tokenizer.ggml.token_type")?;
    if kinds.len() != tokens.len() {
        return Err(wrong(format!("{} tokens, but {} token types", tokens.len(), kinds.len())));
    }
    let mut merges = Vec::new();
    for merge in gguf.texts("tokenizer.ggml.merges")? {
        match merge.split_once(' ') {
            Some((left, right)) => merges.push((left.to_owned(), right.to_owned())),
            None => return Err(wrong(format!("merge `{merge}` is not two words"))),
        }
    }
    let vocab: Vocab = (0u32..).zip(&tokens).map(|(id, token)| ((*token).to_owned(), id)).collect();
    let pre = gguf.text("tokenizer.ggml.pre")?;
    let whole_words = pre == "llama-bpe";
    let bpe =
        BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(whole_words).build().map_err(failed)?;
    let mut tokenizer = Tokenizer::new(bpe);
    let splitter = splitter(pre).map_err(failed)?.ok_or_else(|| {
        let known = "smollm, gpt-2, llama-bpe, qwen2";
        wrong(format!("splitting rule `{pre}` (tokenizer.ggml.pre) is not known ({known})"))
    })?;
    tokenizer.with_pre_tokenizer(Some(splitter));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    if pre == "qwen2" {
        tokenizer.with_normalizer(Some(NFC)).map_err(failed)?;
    }
    let of_kind = |kind: i64| tokens.iter().zip(&kinds).filter(move |(_, k)| **k == kind).map(|(t, _)| *t);
    let control: Vec<_> = of_kind(CONTROL).map(|t| AddedToken::from(t, true)).collect();
    let added: Vec<_> = of_kind(USER_DEFINED).map(|t| AddedToken::from(t, false).normalized(false)).collect();
    tokenizer.add_special_tokens(control).map_err(failed)?;
    tokenizer.add_tokens(added).map_err(failed)?;
    if gguf.flag_or("tokenizer.ggml.add_bos_token", pre == "llama-bpe")? {
        let id = gguf.integer("tokenizer.ggml.bos_token_id")?;
        let Some(bos) = tokens.get(id) else {
            return Err(wrong(format!("token {id}, which begins texts, is beyond the vocabulary")));
        };
        let template = TemplateProcessing::builder()
            .try_single(format!("{bos} $A"))
            .and_then(|t| {
                t.special_tokens(vec![((*bos).to_owned(), id as u32)]).build().map_err(|e| e.to_string())
            })
            .map_err(|e| wrong(format!("its tokenizer cannot be built: {e}")))?;
        tokenizer.with_post_processor(Some(template));
    }
    Ok(tokenizer)
}

/// The rule by which text is split before BPE, by llama.cpp's name for it.
fn splitter(pre: &str) -> tokenizers::Result<Option<PreTokenizerWrapper>> {
    let words = |pattern: &str| -> tokenizers::Result<PreTokenizerWrapper> {
        let pattern = SplitPattern::Regex(pattern.to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
        let bytes = ByteLevel::new(false, true, false);
        Ok(Sequence::new(vec![split.into(), bytes.into()]).into())
    };
    Ok(Some(match pre {
        "smollm" => {
            Sequence::new(vec![Digits::new(true).into(), ByteLevel::new(false, true, true).into()]).into()
        }
        "gpt-2" => ByteLevel::new(false, true, true).into(),
        "llama-bpe" => words(LLAMA3_WORDS)?,
        "qwen2" => words(QWEN2_WORDS)?,
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    fn pieces(pre: &str, text: &str) -> Vec<String> {
        let mut string = PreTokenizedString::from(text);
        splitter(pre).unwrap().unwrap().pre_tokenize(&mut string).unwrap();
        let splits = string.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(piece, ..)| piece.to_owned()).collect()
    }

    #[test]
    fn digits_are_grouped_as_each_model_was_trained() {
        assert_eq!(pieces("smollm", "in 12345"), ["in", "Ġ", "1", "2", "3", "4", "5"]);
        assert_eq!(pieces("gpt-2", "in 12345"), ["in", "Ġ12345"]);
        assert_eq!(pieces("llama-bpe", "in 12345"), ["in", "Ġ", "123", "45"]);
        assert_eq!(pieces("qwen2", "in 12345"), ["in", "Ġ", "1", "2", "3", "4", "5"]);
    }
}
