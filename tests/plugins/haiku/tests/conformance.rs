//! What every host will do to the plugin.

#[test]
fn conforms() {
    e2llm_plugin::testing::assert_conforms(haiku::e2llm_plugin_entry);
}
