//! Reading catalogues.

use super::*;

#[test]
fn built_in_catalogue_is_sound() {
    let all = Catalogue::built_in().unwrap();
    assert_eq!(all.names().collect::<Vec<_>>(), ["all-minilm-l6-v2", "e2llm-135m", "smollm2-135m-instruct"]);
    let smol = all.get("smollm2-135m-instruct").unwrap();
    assert_eq!(smol.gguf(), Some("SmolLM2-135M-Instruct.Q4_1.gguf"));
    assert_eq!(smol.weights_sha256().as_ref(), Some(&smol.files[0].sha256));
    let e2llm = all.get("e2llm-135m").unwrap();
    assert!(e2llm.trained == Some(true) || e2llm.description.contains("UNTRAINED"));
}

#[test]
fn unknown_name_suggests_the_nearest() {
    let error = Catalogue::built_in().unwrap().get("smollm-135m-instruct").unwrap_err();
    assert_eq!(error.to_string(), "unknown model `smollm-135m-instruct`");
    assert_eq!(error.help().unwrap(), "did you mean `smollm2-135m-instruct`?");
    let error = Catalogue::built_in().unwrap().get("qqq").unwrap_err();
    assert!(error.help().unwrap().contains("all-minilm-l6-v2, e2llm-135m"), "{:?}", error.help());
}

#[test]
fn catalogue_mistakes_name_line_and_key() {
    let good = Machine::new().catalogue;
    let case = |text: &str| {
        let error = Catalogue::built_in().unwrap().add_text(text, "my.toml").unwrap_err();
        (error.to_string(), error.help().unwrap_or_default())
    };
    let (message, help) = case(&good.replace("licence", "license"));
    assert!(message.starts_with("my.toml:4: unknown field `license`"), "{message}");
    assert_eq!(help, "did you mean `licence`?");
    let (message, help) = case(&format!("{good}[[tiny.sources]]\npyton = {{}}\n"));
    assert!(message.starts_with("my.toml:15: unknown variant `pyton`"), "{message}");
    assert_eq!(help, "did you mean `python`?");
    let (message, _) = case(&good.replace("size = 47", "size = \"47\""));
    assert!(message.starts_with("my.toml:12: invalid type"), "{message}");
    let (message, _) = case(&good.replace("sha256 = \"", "sha256 = \"G"));
    assert!(message.contains("model `tiny`: sha256 of `config.json`"), "{message}");
    let (message, _) = case(&good.replace("config.json", "../config.json"));
    assert!(message.contains("`../config.json` must be relative"), "{message}");
    let e2llm = "\n[mine]\nkind = \"e2llm\"\ndescription = \"\"\nlicence = \"MIT\"\ntrained = true\n\
                 encoder = \"all-minilm\"\ndecoder = \"tiny\"\n";
    let (message, help) = case(&format!("{good}{e2llm}"));
    assert_eq!(message, "my.toml:15: model `mine`: no encoder `all-minilm`");
    assert_eq!(help, "did you mean `all-minilm-l6-v2`?");
    let (message, _) = case(&format!("{good}{}", e2llm.replace("all-minilm", "smollm2-135m-instruct")));
    assert!(message.contains("is of kind `decoder`"), "{message}");
}

#[test]
fn later_file_replaces_an_entry() {
    let machine = Machine::new();
    let file = machine.path("models.toml");
    write(
        &file,
        machine
            .catalogue
            .replace("[tiny", "[smollm2-135m-instruct")
            .replace("[[tiny", "[[smollm2-135m-instruct")
            .as_bytes(),
    );
    let mut all = Catalogue::built_in().unwrap();
    all.add_file(&file).unwrap();
    assert_eq!(all.get("smollm2-135m-instruct").unwrap().window, Some(77));
    assert_eq!(all.iter().count(), 3);
}
