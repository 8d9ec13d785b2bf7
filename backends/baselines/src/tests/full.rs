//! `full`.

use super::{answer, assert_same, build, decoder, folder, noise, prompt, request};
use crate::prompt::Whole;
use crate::{full, no_context, truncate};
use e2llm_backend::ErrorKind;

#[test]
fn everything_is_read_or_it_is_an_error() {
    let folder = folder(128);
    let mut full = build(full::spec(), folder.path(), &[]).unwrap();
    let mut truncate = build(truncate::spec(), folder.path(), &[]).unwrap();
    let short = request(prompt(&noise(40), true));
    assert_same(&mut *full, &mut *truncate, &short);
    let usage = answer(&mut *full, &short).unwrap().usage;
    assert_eq!((usage.context_tokens, usage.context_seen, usage.context_dropped), (40, 40, 0));
    let long = request(prompt(&noise(120), true));
    let error = answer(&mut *full, &long).unwrap_err();
    assert_eq!(error.kind, ErrorKind::ContextTooLong);
    assert!(error.message.contains("128"), "{error}");
    assert!(answer(&mut *truncate, &long).is_ok());
    assert!(full.choose(&long, &["A".to_owned()]).is_err());
}

#[test]
fn the_context_is_found_in_the_whole_prompt() {
    let folder = folder(128);
    let decoder = decoder(folder.path(), 128);
    for (context, chat) in
        [("a dog", true), ("a dog", false), ("user", true), ("  é日  ", true), ("  é日  ", false)]
    {
        let mut prompt = prompt(context, chat);
        for template in
            ["Read: {context}\nQ: {instruction}", "{context}{instruction}", "{instruction}{context}"]
        {
            prompt.template = template.into();
            let whole = Whole::new(&decoder, &prompt).unwrap();
            assert_eq!(whole.ids, decoder.wrap(&prompt.render(), &prompt).unwrap());
            let text = decoder.tokenizer.decode(&whole.ids[whole.context.clone()], false).unwrap();
            assert_eq!(text.trim(), context.trim(), "{template} {chat}");
        }
    }
    let mut hidden = prompt("unseen", true);
    hidden.template = "{instruction}".into();
    let usage = Whole::new(&decoder, &hidden).unwrap().usage();
    assert_eq!((usage.context_tokens, usage.context_seen, usage.context_dropped), (6, 0, 6));
    let mut empty = prompt("", false);
    (empty.template, empty.instruction) = (String::new(), String::new());
    let ids = Whole::new(&decoder, &empty).unwrap().ids;
    assert_eq!(ids, [1], "only the special token");
}

#[test]
fn anchors_differ_where_the_context_matters() {
    let folder = folder(128);
    let request = request(prompt(&noise(60), true));
    let mut full = build(full::spec(), folder.path(), &[]).unwrap();
    let mut without = build(no_context::spec(), folder.path(), &[]).unwrap();
    let (a, b) = (super::scores(&mut *full, &request), super::scores(&mut *without, &request));
    assert!(super::difference(&a, &b) > 1e-3);
}
