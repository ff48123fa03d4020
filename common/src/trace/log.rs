//! Log lines that tell which request they belong to: fields `request` and `trace_id`, put to whatever the usual form
//! writes.

use std::fmt;

use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::telemetry::LogFormat;

/// Writes an event as `inner` does, and the ids of the request at hand behind it.
pub struct WithRequest<F> {
    pub inner: F,
    pub format: LogFormat,
}

impl<S, N, F> FormatEvent<S, N> for WithRequest<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(trace) = super::current() else { return self.inner.format_event(context, writer, event) };
        let mut line = String::with_capacity(256);
        self.inner.format_event(context, Writer::new(&mut line), event)?;
        let (request, trace_id) = (trace.request(), trace.id());
        match (self.format, line.trim_end().strip_suffix('}')) {
            // A request id is graphic ASCII, in which two characters have to be escaped.
            (LogFormat::Json, Some(open)) => {
                let request = request.replace('\\', "\\\\").replace('"', "\\\"");
                writeln!(writer, "{open},\"request\":\"{request}\",\"trace_id\":\"{trace_id}\"}}")
            }
            _ => writeln!(writer, "{} request={request} trace_id={trace_id}", line.trim_end()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use http::HeaderMap;

    use super::super::Trace;
    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is logged inside and outside a request.
    async fn logged(format: LogFormat) -> (Trace, String) {
        let lines = Lines::default();
        let written = lines.clone();
        let (subscriber, _) = crate::telemetry::subscriber(format, "info", move || lines.clone(), false);
        let mut headers = HeaderMap::new();
        headers.insert(super::super::REQUEST_ID, r#"a"b\c"#.parse().unwrap());
        let trace = Trace::of_request(&headers, || "unused".into());
        let _guard = tracing::dispatcher::set_default(&subscriber);
        tracing::info!(answer = 42, "outside");
        trace.clone().run(async { tracing::info!(answer = 42, "inside") }).await;
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        (trace, text)
    }

    #[tokio::test]
    async fn json_lines_have_the_ids_as_fields() {
        let (trace, text) = logged(LogFormat::Json).await;
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(
            (&lines[0]["message"], &lines[0]["request"]),
            (&"outside".into(), &serde_json::Value::Null)
        );
        assert_eq!((&lines[1]["message"], &lines[1]["answer"]), (&"inside".into(), &42.into()));
        assert_eq!(
            (&lines[1]["request"], &lines[1]["trace_id"]),
            (&r#"a"b\c"#.into(), &trace.id().to_string().into())
        );
    }

    #[tokio::test]
    async fn text_lines_end_with_the_ids() {
        let (trace, text) = logged(LogFormat::Text).await;
        let end = format!(r#"inside answer=42 request=a"b\c trace_id={}"#, trace.id());
        assert!(text.lines().nth(1).unwrap().ends_with(&end), "{text}");
        assert!(text.lines().next().unwrap().ends_with("outside answer=42"), "{text}");
    }
}
