//! Text of SEPA files: the Latin characters that every bank of the area takes.
//!
//! Accented letters become what banks write for them (`ü` → `ue`, `é` → `e`), `&` becomes `+`. A character without
//! such a form is an error: dots in its place would lose the name.

/// A character that has no form in a SEPA file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot be written in a SEPA file: use Latin letters, digits, space and / - ? : ( ) . , ' +")]
pub struct NotLatin(pub char);

pub(super) const IDENTIFIER_RULE: &str = "1 to 35 of A-Z a-z 0-9 space / - ? : ( ) . , ' +, \
                                          with no slash at its ends and no two in a row";
const IDENTIFIER_MAX: usize = 35;

/// What stands for letters that are not of the set.
const FORMS: [(&str, &str); 62] = [
    ("ÀÁÂÃÅĀĂĄ", "A"),
    ("àáâãåāăą", "a"),
    ("ÄÆ", "AE"),
    ("äæ", "ae"),
    ("ÇĆĈĊČ", "C"),
    ("çćĉċč", "c"),
    ("ÐĎĐ", "D"),
    ("ðďđ", "d"),
    ("ÈÉÊËĒĔĖĘĚ", "E"),
    ("èéêëēĕėęě", "e"),
    ("ĜĞĠĢ", "G"),
    ("ĝğġģ", "g"),
    ("ĤĦ", "H"),
    ("ĥħ", "h"),
    ("ÌÍÎÏĨĪĬĮİ", "I"),
    ("ìíîïĩīĭįı", "i"),
    ("Ĵ", "J"),
    ("ĵ", "j"),
    ("Ķ", "K"),
    ("ķ", "k"),
    ("ĹĻĽĿŁ", "L"),
    ("ĺļľŀł", "l"),
    ("ÑŃŅŇŊ", "N"),
    ("ñńņňŋ", "n"),
    ("ÒÓÔÕØŌŎŐ", "O"),
    ("òóôõøōŏő", "o"),
    ("ÖŒ", "OE"),
    ("öœ", "oe"),
    ("ŔŖŘ", "R"),
    ("ŕŗř", "r"),
    ("ŚŜŞŠȘ", "S"),
    ("śŝşšș", "s"),
    ("ß", "ss"),
    ("ẞ", "SS"),
    ("ŢŤŦȚ", "T"),
    ("ţťŧț", "t"),
    ("Þ", "TH"),
    ("þ", "th"),
    ("ÙÚÛŨŪŬŮŰŲ", "U"),
    ("ùúûũūŭůűų", "u"),
    ("Ü", "UE"),
    ("ü", "ue"),
    ("Ŵ", "W"),
    ("ŵ", "w"),
    ("ÝŶŸ", "Y"),
    ("ýŷÿ", "y"),
    ("ŹŻŽ", "Z"),
    ("źżž", "z"),
    ("&", "+"),
    ("‘’`´ʼ", "'"),
    ("“”„\"«»", "'"),
    ("‐‑–—_~", "-"),
    ("\u{a0}\t\n\r", " "),
    (";", ","),
    ("!…", "."),
    ("[{<", "("),
    ("]}>", ")"),
    ("\\|", "/"),
    ("@", "(at)"),
    ("€", "EUR"),
    ("·•", "."),
    ("=", "-"),
];

/// The text in a SEPA file, all of it ASCII. Nothing is dropped.
pub(super) fn encode(text: &str) -> Result<String, NotLatin> {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_latin(c) {
            out.push(c);
        } else {
            let form = FORMS.iter().find(|(letters, _)| letters.contains(c)).ok_or(NotLatin(c))?;
            out.push_str(form.1);
        }
    }
    Ok(out)
}

/// Whether a text can be an identifier of a message, an order or a mandate, as it is.
pub(super) fn is_identifier(text: &str) -> bool {
    let slashes = text.starts_with('/') || text.ends_with('/') || text.contains("//");
    (1..=IDENTIFIER_MAX).contains(&text.len()) && text.chars().all(is_latin) && !slashes
}

fn is_latin(c: char) -> bool {
    c.is_ascii_alphanumeric() || " /-?:().,'+".contains(c)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn accents_become_what_banks_write() {
        for (written, accepted) in [
            ("Jürgen Weiß & Söhne", "Juergen Weiss + Soehne"),
            ("Łódź – Ştefan d’Œuvre", "Lodz - Stefan d'OEuvre"),
            ("Bob's (Delivery), Inc.", "Bob's (Delivery), Inc."),
        ] {
            assert_eq!(encode(written).as_deref(), Ok(accepted));
        }
        assert_eq!(encode("Bob 株"), Err(NotLatin('株')));
        assert_eq!(encode("a\u{0}"), Err(NotLatin('\u{0}')));
    }

    #[test]
    fn identifiers_are_taken_as_they_are_or_not_at_all() {
        for good in ["S-0000012", "a/b", "x"] {
            assert!(is_identifier(good), "{good}");
        }
        for bad in ["", "/a", "a/", "a//b", "é", "S_1", "123456789012345678901234567890123456"] {
            assert!(!is_identifier(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn only_accepted_characters_are_written(text in "[À-ž -~‐-”]{0,40}") {
            if let Ok(written) = encode(&text) {
                prop_assert!(written.chars().all(is_latin), "{}", written);
                prop_assert_eq!(encode(&written), Ok(written.clone()));
                prop_assert!(written.len() >= text.chars().count());
            }
        }
    }
}
