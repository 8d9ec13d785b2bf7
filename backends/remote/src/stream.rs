//! An answer that comes token by token, as server-sent events.

use crate::client::Malformed;
use crate::protocol::{Answer, Reply};
use std::io::BufRead;
use std::time::Instant;

/// Reads events up to `[DONE]` or the stream's end.
pub(crate) fn read_stream(reader: &mut dyn BufRead) -> Result<Answer, Malformed> {
    let mut answer = Answer::default();
    let mut line = String::new();
    loop {
        line.clear();
        let n = reader.read_line(&mut line).map_err(|e| Malformed(format!("its stream broke off: {e}")))?;
        if n == 0 {
            break;
        }
        // Comments (`: ping`), event names and empty lines say nothing here.
        let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
        if data == "[DONE]" {
            break;
        }
        let part: Reply = serde_json::from_str(data)
            .map_err(|e| Malformed(format!("with an event that is no JSON: {e}")))?;
        if let Some(error) = part.error.filter(|e| !e.is_null()) {
            return Err(Malformed(format!("with an error: {error}")));
        }
        if let Some(choice) = part.choices.first() {
            if !choice.text().is_empty() {
                answer.first.get_or_insert_with(Instant::now);
                answer.text.push_str(choice.text());
            }
            answer.finish_reason = choice.finish_reason.clone().or(answer.finish_reason);
            answer.stop_reason = choice.stop_reason.clone().or(answer.stop_reason);
        }
        answer.usage = part.usage.or(answer.usage);
    }
    match answer.finish_reason {
        Some(_) => Ok(answer),
        None => Err(Malformed("its stream ended before the answer did".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ReplyUsage;

    #[test]
    fn pieces_are_put_together() {
        let stream = concat!(
            ": ping\r\n\r\n",
            "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"two \"}}],\"usage\":null}\n\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"words\"},\"finish_reason\":null}]}\n\n",
            "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}\n\n",
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2}}\n\n",
            "data: [DONE]\n\n",
        );
        let answer = read_stream(&mut stream.as_bytes()).unwrap();
        assert_eq!((answer.text.as_str(), answer.finish_reason.as_deref()), ("two words", Some("length")));
        assert_eq!(answer.usage, Some(ReplyUsage { prompt_tokens: 5, completion_tokens: 2 }));
        assert!(answer.first.is_some());
    }

    #[test]
    fn a_stream_that_breaks_off_is_no_answer() {
        for broken in [
            "data: {\"choices\":[{\"text\":\"two \"}]}\n\n",
            "data: {\"choices\":[{\"te",
            "data: {\"error\":{\"message\":\"overloaded\"}}\n\n",
            "",
        ] {
            assert!(read_stream(&mut broken.as_bytes()).is_err(), "{broken}");
        }
    }
}
