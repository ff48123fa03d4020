//! Text within HTML, SVG and JSON within HTML: what came from elsewhere cannot become markup.

/// For text and for attributes in double quotes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Neither XML nor a reader can do anything with them.
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// JSON for a script element: nothing in it can end the element or open a comment.
pub fn json_in_script(json: &str) -> String {
    json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

/// Text for a cell of a Markdown table.
pub fn markdown(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    text.replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;").replace('`', "\\`")
}

/// A field of a CSV file (RFC 4180).
pub fn csv(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_becomes_markup() {
        assert_eq!(
            escape("<script>alert(\"1\" & '2')</script>\u{1}"),
            "&lt;script&gt;alert(&quot;1&quot; &amp; &#39;2&#39;)&lt;/script&gt;\u{fffd}"
        );
        let json = json_in_script(r#"{"what":"</script><!--&"}"#);
        assert!(!json.contains(['<', '>', '&']));
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["what"], "</script><!--&");
        assert_eq!(markdown("a|b\nc <d>"), "a\\|b c &lt;d>");
        assert_eq!((csv("plain"), csv("a,\"b\"")), ("plain".into(), "\"a,\"\"b\"\"\"".into()));
    }
}
