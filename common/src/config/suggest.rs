//! "Did you mean": the known word that is nearest to a mistyped one.

/// Edits that a typing error takes at most; what differs more is another word.
const DISTANCE_MAX: usize = 3;

/// `: did you mean X?`, or nothing if no known word is near.
pub fn hint<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let nearest = known.into_iter().map(|word| (distance(unknown, word), word)).min();
    match nearest {
        Some((edits, word)) if edits <= DISTANCE_MAX => format!(": did you mean {word}?"),
        _ => String::new(),
    }
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_suggested_and_a_far_one_is_not() {
        assert_eq!(hint("lisen", ["admin", "listen"]), ": did you mean listen?");
        assert_eq!(hint("colour", ["admin", "listen"]), "");
        assert_eq!(hint("x", []), "");
    }
}
