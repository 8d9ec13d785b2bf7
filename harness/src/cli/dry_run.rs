//! `run --dry-run`: what would be done, without weights.

use super::output;
use crate::config::RunSettings;
use crate::failure::{Exit, Result};
use crate::run::{OpenTask, TaskPlan};
use e2llm_backend::CancelFlag;
use serde_json::json;

/// Characters of a text's beginning and end that are shown.
const SHOWN: usize = 300;

/// Prints each task's size and first prompt. Lengths are in words: tokens need the model's tokenizer.
///
/// # Errors
/// Data that is missing or broken.
pub(super) fn dry_run(settings: &RunSettings, tasks: Vec<OpenTask>, as_json: bool) -> Result<Exit> {
    for task in tasks {
        let plan = TaskPlan::new(task, settings, "dry-run", None, &CancelFlag::default())?;
        let (mut words, mut first, mut ids) = (Vec::new(), None, Vec::new());
        for example in plan.examples()? {
            let example = example?;
            words.push(example.context.split_whitespace().count());
            ids.push(example.id.clone());
            if first.is_none() {
                first = Some(plan.task.client.prompt(&example)?);
            }
        }
        let n = words.len().max(1);
        let (mean, most) = (words.iter().sum::<usize>() / n, words.iter().max().copied().unwrap_or(0));
        let Some(prompt) = first else { continue };
        let entry = &plan.entry;
        if as_json {
            output::print_json(&json!({
                "task": entry.id, "version": entry.version, "split": entry.split, "samples": entry.samples,
                "context_words_mean": mean, "context_words_max": most, "metrics": entry.metrics,
                "prompt_style": entry.prompt_style, "prompt_hash": entry.prompt_hash, "ids": ids,
            }))?;
            continue;
        }
        let text = e2llm_backend::Prompt {
            context: shortened(&prompt.context),
            instruction: prompt.instruction,
            template: prompt.template,
            ..e2llm_backend::Prompt::default()
        }
        .render();
        output::print(&format!(
            "== {}@{} split {}: {} samples, context words mean {mean}, max {most}; metrics {}; at most {} new tokens\n\
             ids: {}\nfirst prompt (style {}):\n{text}{}\n\n",
            entry.id,
            entry.version,
            entry.split,
            entry.samples,
            entry.metrics.join(", "),
            settings.max_new_tokens.unwrap_or(prompt.max_new_tokens),
            shown_ids(&ids),
            entry.prompt_style,
            prompt.answer_prefix,
        ))?;
    }
    Ok(Exit::Done)
}

fn shown_ids(ids: &[String]) -> String {
    const MOST: usize = 8;
    let shown = ids.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
    if ids.len() > MOST { format!("{shown}, ... ({} more)", ids.len() - MOST) } else { shown }
}

fn shortened(text: &str) -> String {
    let n = text.chars().count();
    if n <= 2 * SHOWN + 40 {
        return text.to_owned();
    }
    let head: String = text.chars().take(SHOWN).collect();
    let tail: String = text.chars().skip(n - SHOWN).collect();
    format!("{head}\n[... {} characters ...]\n{tail}", n - 2 * SHOWN)
}
