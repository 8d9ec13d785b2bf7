//! The host's side of the boundary: everything a plugin hands over is checked before it is believed.

mod instance;
mod metric;
mod plugin;
mod stream;
mod task;

pub use instance::Instance;
pub use metric::MetricClient;
pub use plugin::Plugin;
pub use stream::ExampleStream;
pub use task::TaskClient;
