//! Text of Japanese bank files: one byte a character, JIS X 0201, and only those that banks accept.
//!
//! Accepted are digits, capital letters, half-width katakana without small ones and ｦ, the two voicing marks as
//! characters of their own, space and `¥ , . ( ) - / ｢ ｣`. What people write is brought into that form as they do
//! it at a bank's counter: hiragana and full-width letters become their half-width katakana and capitals, small
//! kana large ones, ヲ ｵ, the long vowel mark a hyphen and the middle dot a full stop.

/// A character that no bank file can hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot be written in a bank file: use katakana, A-Z, 0-9, space and ¥ , . ( ) - / ｢ ｣")]
pub struct Unwritable(pub char);

/// Full-width katakana in the order of their half-width forms' bytes, 0xB1 to 0xDD.
const KATAKANA: &str =
    "アイウエオカキクケコサシスセソタチツテトナニヌネノハヒフヘホマミムメモヤユヨラリルレロワン";
const VOICED: &str = "ヴガギグゲゴザジズゼゾダヂヅデドバビブベボ";
const UNVOICED: &str = "ウカキクケコサシスセソタチツテトハヒフヘホ";
const SEMI_VOICED: &str = "パピプペポ";
const UNSEMI_VOICED: &str = "ハヒフヘホ";
/// Small and obsolete kana, and what stands for them.
const VARIANTS: &str = "ァィゥェォッャュョヮヵヶヲヰヱ";
const PLAIN: &str = "アイウエオツヤユヨワカケオイエ";
/// Half-width ｦ and small kana, and what stands for them.
const HALF_VARIANTS: &str = "ｦｧｨｩｪｫｬｭｮｯ";
const HALF_PLAIN: &str = "ｵｱｲｳｴｵﾔﾕﾖﾂ";

const VOICING: u8 = 0xDE;
const SEMI_VOICING: u8 = 0xDF;

/// The bytes of `text` in a bank file. Nothing is dropped.
pub fn encode(text: &str) -> Result<Vec<u8>, Unwritable> {
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        push(&mut bytes, c)?;
    }
    Ok(bytes)
}

fn push(bytes: &mut Vec<u8>, given: char) -> Result<(), Unwritable> {
    // Hiragana lie 0x60 before their katakana, full-width ASCII 0xFEE0 behind its own.
    let c = match given {
        'ぁ'..='ゖ' => shifted(given, 0x60),
        '！'..='～' => shifted(given, -0xFEE0),
        '\u{3000}' => ' ',
        _ => given,
    };
    let c =
        counterpart(c, VARIANTS, PLAIN).or_else(|| counterpart(c, HALF_VARIANTS, HALF_PLAIN)).unwrap_or(c);
    if let Some(unvoiced) = counterpart(c, VOICED, UNVOICED) {
        push(bytes, unvoiced)?;
        bytes.push(VOICING);
        return Ok(());
    }
    if let Some(unvoiced) = counterpart(c, SEMI_VOICED, UNSEMI_VOICED) {
        push(bytes, unvoiced)?;
        bytes.push(SEMI_VOICING);
        return Ok(());
    }
    if let Some(position) = KATAKANA.chars().position(|katakana| katakana == c) {
        bytes.push(0xB1 + position as u8); // 45 of them
        return Ok(());
    }
    bytes.push(match c {
        '0'..='9' | 'A'..='Z' | ' ' | ',' | '.' | '(' | ')' | '-' | '/' => c as u8,
        'a'..='z' => c.to_ascii_uppercase() as u8,
        'ー' | 'ｰ' | '‐' | '‑' | '–' | '—' | '―' | '−' => b'-',
        '・' | '･' | '。' | '｡' => b'.',
        '、' | '､' => b',',
        '¥' | '￥' | '\\' => 0x5C,
        '「' | '｢' => 0xA2,
        '」' | '｣' => 0xA3,
        'ｱ'..='ﾝ' => half_width_byte(c),
        '゛' | 'ﾞ' | '\u{3099}' => VOICING,
        '゜' | 'ﾟ' | '\u{309A}' => SEMI_VOICING,
        _ => return Err(Unwritable(given)),
    });
    Ok(())
}

fn shifted(c: char, by: i32) -> char {
    (c as u32).checked_add_signed(by).and_then(char::from_u32).unwrap_or(c)
}

fn counterpart(c: char, from: &str, to: &str) -> Option<char> {
    from.chars().zip(to.chars()).find(|(from, _)| *from == c).map(|(_, to)| to)
}

/// Unicode has half-width kana in the order of JIS X 0201, from U+FF61 = 0xA1 on.
fn half_width_byte(c: char) -> u8 {
    ((c as u32 - 0xFF61) + 0xA1) as u8
}

/// The text of bytes as a bank sent them, in half-width kana; bytes of no character become U+FFFD.
pub fn decode(bytes: &[u8]) -> String {
    let shown = |byte: &u8| match *byte {
        0x5C => '¥',
        b' '..=b'}' => *byte as char,
        0xA1..=0xDF => char::from_u32(u32::from(*byte) - 0xA1 + 0xFF61).unwrap_or('\u{fffd}'),
        _ => '\u{fffd}',
    };
    bytes.iter().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn half(text: &str) -> String {
        decode(&encode(text).unwrap())
    }

    #[test]
    fn what_people_write_becomes_what_banks_accept() {
        for (written, accepted) in [
            ("カブシキガイシャ　ドーゾ", "ｶﾌﾞｼｷｶﾞｲｼﾔ ﾄﾞ-ｿﾞ"),
            ("ﾊﾞｯﾃﾘｰｦｧ", "ﾊﾞﾂﾃﾘ-ｵｱ"),
            ("みずほ", "ﾐｽﾞﾎ"),
            ("きっぷ・ｐａｒｔ（２）", "ｷﾂﾌﾟ.PART(2)"),
            ("ヴァイオリンヮヵヶヰヱを", "ｳﾞｱｲｵﾘﾝﾜｶｹｲｴｵ"),
            ("ハ゜か\u{3099}", "ﾊﾟｶﾞ"),
            ("S-0000012/「ア」￥1,000.", "S-0000012/｢ｱ｣¥1,000."),
            ("アンワロ", "ｱﾝﾜﾛ"),
        ] {
            assert_eq!(half(written), accepted, "{written}");
        }
        assert_eq!(encode("ガ").unwrap(), [0xB6, 0xDE]);
        assert_eq!(encode("ｱﾝ").unwrap(), [0xB1, 0xDD]);
    }

    #[test]
    fn a_character_that_cannot_be_written_is_named() {
        for (text, c) in
            [("株式会社", '株'), ("A_B", '_'), ("é", 'é'), ("a\nb", '\n'), ("ヷ", 'ヷ'), ("＿", '＿')]
        {
            assert_eq!(encode(text), Err(Unwritable(c)), "{text}");
        }
        assert!(encode("株").unwrap_err().to_string().starts_with("'株' cannot be written in a bank file"));
        assert_eq!(decode(&[b'A', 0x00, 0x80, 0xE0]), "A\u{fffd}\u{fffd}\u{fffd}");
    }

    #[test]
    fn tables_pair_up() {
        for (from, to) in
            [(VOICED, UNVOICED), (SEMI_VOICED, UNSEMI_VOICED), (VARIANTS, PLAIN), (HALF_VARIANTS, HALF_PLAIN)]
        {
            assert_eq!(from.chars().count(), to.chars().count(), "{from}");
        }
        assert_eq!(KATAKANA.chars().count(), 0xDD - 0xB1 + 1);
    }

    proptest! {
        #[test]
        fn only_accepted_bytes_are_written_and_writing_again_changes_nothing(
            text in "[ぁ-ゖァ-ヴー・０-９Ａ-Ｚａ-ｚ!-~ｦ-ﾟ　-】]{0,30}",
        ) {
            if let Ok(bytes) = encode(&text) {
                let accepted = |b: &u8| {
                    b.is_ascii_digit() || b.is_ascii_uppercase() || b" ,.()-/\\".contains(b)
                        || matches!(b, 0xA2 | 0xA3 | 0xB1..=0xDF)
                };
                prop_assert!(bytes.iter().all(accepted), "{:?}", bytes);
                prop_assert_eq!(encode(&decode(&bytes)).unwrap(), bytes.clone());
                prop_assert!(bytes.len() >= text.chars().count());
            }
        }
    }
}
