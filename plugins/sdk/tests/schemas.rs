//! The JSON that crosses the boundary, as schemas: for plugins in other languages.

use e2llm_plugin::serve::{
    AggregateRequest, CloseRequest, NextReply, NextRequest, OpenReply, ResponseRequest, TurnRequest,
};
use e2llm_plugin::{
    Aggregate, Error, Example, Identity, MetricInfo, MetricOptions, Prediction, Prompt, Scored, Scores,
    Source, TaskInfo, TaskOptions,
};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};
use std::path::Path;

fn method<Q: JsonSchema, A: JsonSchema>(all: &mut SchemaGenerator) -> Value {
    json!({"request": schema::<Q>(all), "reply": schema::<A>(all)})
}

fn schema<T: JsonSchema>(all: &mut SchemaGenerator) -> Schema {
    all.subschema_for::<T>()
}

#[test]
fn schemas_are_up_to_date() {
    let mut all = SchemaGenerator::default();
    let a = &mut all;
    let protocol = json!({
        "identity": schema::<Identity>(a),
        "error": schema::<Error>(a),
        "create": {"request": schema::<TaskOptions>(a)},
        "task": {
            "info": method::<(), TaskInfo>(a),
            "open": method::<Source, OpenReply>(a),
            "next": method::<NextRequest, NextReply>(a),
            "close": method::<CloseRequest, ()>(a),
            "prompt": method::<Example, Prompt>(a),
            "next_turn": method::<TurnRequest, Option<Prompt>>(a),
            "extract": method::<ResponseRequest, Prediction>(a),
        },
        "metric": {
            "create": {"request": schema::<MetricOptions>(a)},
            "info": method::<(), MetricInfo>(a),
            "score": method::<Scored, Scores>(a),
            "aggregate": method::<AggregateRequest, Aggregate>(a),
        },
    });
    let made = json!({"methods": protocol, "$defs": all.take_definitions(true)});
    let made = serde_json::to_string_pretty(&made).expect("schemas are JSON") + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/protocol.json");
    if std::env::var_os("E2LLM_UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("the folder can be made");
        std::fs::write(&path, &made).expect("the schemas can be written");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == made, "schemas/protocol.json is stale: run with E2LLM_UPDATE=1 and commit it");
}
