//! Log messages on stderr.

use std::fmt;
use std::io::IsTerminal;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, FormatEvent, FormatFields, Full, Writer, format};
use tracing_subscriber::fmt::{FmtContext, fmt};
use tracing_subscriber::registry::LookupSpan;

/// Shows log messages; `E2LLM_LOG` sets which (default: warnings). Colours are for terminals, and not where `NO_COLOR` is
/// set. A stderr that is gone is not told of.
pub(super) fn start() {
    let filter = EnvFilter::try_from_env("E2LLM_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(!plain && std::io::stderr().is_terminal())
        .log_internal_errors(false)
        .event_format(Lines(format().without_time()))
        .init();
    // The HTTP library's lowest level is a dump of all bytes sent, a server's key among them.
    log::set_max_level(log::max_level().min(log::LevelFilter::Debug));
}

/// Warnings and errors as a user reads them, `warning: message`; the rest, which is for debugging, with its place.
struct Lines(Format<Full, ()>);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let (name, colour) = match *event.metadata().level() {
            Level::ERROR => ("error", 31),
            Level::WARN => ("warning", 33),
            _ => return self.0.format_event(context, writer, event),
        };
        if writer.has_ansi_escapes() {
            write!(writer, "\x1b[{colour}m{name}\x1b[0m: ")?;
        } else {
            write!(writer, "{name}: ")?;
        }
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
