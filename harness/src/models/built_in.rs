//! Models that are small enough to be part of this program: `configs/models/`.

/// Files of `configs/models`, by their names there.
macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/models/", $name)))),*]
    };
}

const FILES: &[(&str, &[u8])] = files![
    "e2llm-135m/e2llm_config.json",
    "e2llm-135m/base.json",
    "e2llm-135m/trained_on.txt",
    "e2llm-135m/e2llm.safetensors.index.json",
    "e2llm-135m/e2llm-00001-of-00002.safetensors",
    "e2llm-135m/e2llm-00002-of-00002.safetensors",
];

/// A file's bytes, by its name in `configs/models`.
pub(super) fn built_in(name: &str) -> Option<&'static [u8]> {
    FILES.iter().find(|(n, _)| *n == name).map(|(_, bytes)| *bytes)
}

#[cfg(test)]
mod tests {
    use super::super::{Catalogue, Source};
    use super::*;
    use sha2::{Digest, Sha256};

    #[test]
    fn files_are_those_of_the_catalogue() {
        let catalogue = Catalogue::built_in().unwrap();
        let mut listed = 0;
        for (name, entry) in catalogue.iter() {
            for source in &entry.sources {
                let Source::Program(program) = source else { continue };
                for file in &entry.files {
                    let bytes = built_in(&format!("{}/{}", program.folder, file.name));
                    let bytes = bytes.unwrap_or_else(|| panic!("{name}: {} is not built in", file.name));
                    let sha256 = e2llm_backend::fingerprint::hex(&Sha256::digest(bytes));
                    assert_eq!(
                        (bytes.len() as u64, sha256.as_str()),
                        (file.size, file.sha256.as_str()),
                        "{}",
                        file.name
                    );
                    listed += 1;
                }
            }
        }
        assert_eq!(listed, FILES.len());
    }
}
