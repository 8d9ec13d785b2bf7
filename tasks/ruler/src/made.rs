//! What a generator makes, and the wordings: ours, with the parts that RULER's have.

use e2llm_plugin::{Example, Prompt};

/// A text of a given amount of hay with what is asked of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Made {
    pub(crate) context: String,
    pub(crate) instruction: String,
    /// What the answer is made to begin with, after the chat template.
    pub(crate) answer_prefix: String,
    pub(crate) references: Vec<String>,
    /// What must be in the text for the answer to be found.
    pub(crate) evidence: Vec<String>,
}

impl Made {
    /// The prompt of a task, as [`prompt`] makes it of the example.
    pub(crate) fn prompt(&self, subtask: &str, tokens: u64) -> Prompt {
        let example = Example {
            context: self.context.clone(),
            instruction: self.instruction.clone(),
            ..Example::default()
        };
        prompt(&example, subtask, &self.answer_prefix, tokens)
    }
}

/// The prompt of an example.
pub(crate) fn prompt(example: &Example, subtask: &str, answer_prefix: &str, tokens: u64) -> Prompt {
    let mut prompt = Prompt::new(example, template(subtask), usize::try_from(tokens).unwrap_or(usize::MAX));
    prompt.answer_prefix = answer_prefix.to_owned();
    prompt
}

/// `vt` and `cwe` come with a worked example, as in RULER; here it is the same one in every prompt.
fn template(subtask: &str) -> &'static str {
    match subtask {
        "vt" => {
            "Texts hide variables, some of which take their values from others. Keep track of them.\n\n\
             Text: VAR QPD = 48213 The lake is calm. The hill is steep. The road is dry. On we walk. Home again by night.\n\
             VAR WUX = VAR QPD The lake is calm. The hill is steep. The road is dry. On we walk. Home again by night.\n\
             VAR JEM = VAR WUX\n\
             Question: Which variables have the value 48213, from the number itself or by way of others?\n\
             Answer: These 3 variables have the value 48213: QPD WUX JEM\n\n\
             Text: {context}\n{instruction}"
        }
        "cwe" => {
            "Some words of a numbered list occur more often than all others. Remember those.\n\n\
             List: 1. lemon 2. stair 3. glove 4. lemon 5. river 6. stair 7. lemon 8. cloud 9. stair 10. lemon 11. stair 12. \
             fork\n\
             Question: Which 2 words are the most common in the list?\n\
             Answer: The 2 most common words in the list are: 1. lemon 2. stair\n\n\
             List: {context}\n{instruction}"
        }
        "fwe" => {
            "The following text is made of coded words. Count how often each one occurs; dots are no words.\n\n{context}\n\n\
             {instruction}"
        }
        "qa_1" | "qa_2" => {
            "The answer to a question is in some of these documents.\n\n{context}\n\n{instruction}"
        }
        _ => {
            "This text hides some special magic values. Keep them in mind: you will be asked for some of them.\n\n{context}\n\n\
             {instruction}"
        }
    }
}
