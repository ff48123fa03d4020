//! JSON within HTML, text within Markdown and CSV: what came from elsewhere cannot become markup or another cell.

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
        let json = json_in_script(r#"{"what":"</script><!--&"}"#);
        assert!(!json.contains(['<', '>', '&']));
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["what"], "</script><!--&");
        assert_eq!(markdown("a|b\nc <d>"), "a\\|b c &lt;d>");
        assert_eq!((csv("plain"), csv("a,\"b\"")), ("plain".into(), "\"a,\"\"b\"\"\"".into()));
    }
}
