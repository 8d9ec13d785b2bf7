//! Rows for aggregation as a table: a corpus has many, and each is a map of its own only while it is looked at.

use crate::Row;
use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use std::fmt;

/// Rows in order.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    ids: Vec<String>,
    /// Position of the id, and the value.
    values: Vec<(u32, f64)>,
    /// Where each row's values end.
    ends: Vec<usize>,
}

impl Rows {
    fn push(&mut self, row: Row) {
        for (id, value) in row.scores {
            let at = self.ids.iter().position(|i| *i == id).unwrap_or_else(|| {
                self.ids.push(id);
                self.ids.len() - 1
            });
            self.values.push((at as u32, value));
        }
        self.ends.push(self.values.len());
    }

    /// One by one.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Row> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| Row {
            scores: (self.values[start..end].iter())
                .map(|&(at, value)| (self.ids[at as usize].clone(), value))
                .collect(),
        })
    }
}

impl<'de> Deserialize<'de> for Rows {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Rows;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of rows")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Rows, A::Error> {
                let mut rows = Rows::default();
                while let Some(row) = seq.next_element()? {
                    rows.push(row);
                }
                Ok(rows)
            }
        }
        deserializer.deserialize_seq(Each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_as_they_were() {
        let text = r#"[{"scores":{"b":2.0,"a":1.0}},{"scores":{}},{"scores":{"c":0.5,"a":-1.0}}]"#;
        let rows: Rows = serde_json::from_str(text).unwrap();
        assert_eq!(rows.iter().collect::<Vec<_>>(), serde_json::from_str::<Vec<Row>>(text).unwrap());
        assert!(serde_json::from_str::<Rows>(r#"[{"scores":1}]"#).is_err());
    }
}
