//! Writing XML: elements by closures, text by value. Bytes go to memory, so nothing can fail.

use std::io;

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};

/// A document under way. Elements are indented by two spaces.
pub(crate) struct Xml {
    writer: Writer<Vec<u8>>,
}

impl Xml {
    /// The whole document: its root element with attributes, filled by `content`.
    pub(crate) fn document(
        root: &str,
        attributes: &[(&str, &str)],
        content: impl FnOnce(&mut Self),
    ) -> Vec<u8> {
        let mut xml = Self { writer: Writer::new_with_indent(Vec::new(), b' ', 2) };
        in_memory(xml.writer.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None))));
        xml.element_with(root, attributes, content);
        let mut bytes = xml.writer.into_inner();
        bytes.push(b'\n');
        bytes
    }

    /// `<name>…</name>`, filled by `content`.
    pub(crate) fn element(&mut self, name: &str, content: impl FnOnce(&mut Self)) {
        self.element_with(name, &[], content);
    }

    fn element_with(&mut self, name: &str, attributes: &[(&str, &str)], content: impl FnOnce(&mut Self)) {
        let start = quick_xml::events::BytesStart::new(name).with_attributes(attributes.iter().copied());
        let end = start.to_end().into_owned();
        in_memory(self.writer.write_event(Event::Start(start.borrow())));
        content(self);
        in_memory(self.writer.write_event(Event::End(end)));
    }

    /// `<name>value</name>`.
    pub(crate) fn text(&mut self, name: &str, value: &str) {
        self.text_with(name, &[], value);
    }

    /// `<name attribute="…">value</name>`. Characters that XML 1.0 cannot hold become U+FFFD.
    pub(crate) fn text_with(&mut self, name: &str, attributes: &[(&str, &str)], value: &str) {
        let value: String = value.chars().map(|c| if is_xml_char(c) { c } else { '\u{fffd}' }).collect();
        let element = self.writer.create_element(name).with_attributes(attributes.iter().copied());
        in_memory(element.write_text_content(BytesText::new(&value)).map(|_| ()));
    }
}

/// `Char` of XML 1.0.
fn is_xml_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'..)
}

fn in_memory(result: io::Result<()>) {
    result.expect("writing to memory cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_attributes_are_escaped() {
        let bytes = Xml::document("a", &[("x", "1 < \"2\" & 3")], |xml| {
            xml.element("b", |xml| xml.text_with("c", &[("y", "'")], "<&>\u{0}京\u{ffff}"));
        });
        let expected = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<a x=\"1 &lt; &quot;2&quot; &amp; 3\">\n  <b>\n    \
                        <c y=\"&apos;\">&lt;&amp;&gt;\u{fffd}京\u{fffd}</c>\n  </b>\n</a>\n";
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    }
}
