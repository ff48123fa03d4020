//! Counts of bytes as people write and read them.

use super::ConfigError;

/// Reads a count of bytes: digits with an optional `KiB`, `MiB`, `GiB`, `TiB` (or `kB`, `MB`, `GB`, `TB`).
pub fn parse_bytes(text: &str) -> Result<u64, ConfigError> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "KiB" | "K" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        "TiB" | "T" => 1 << 40,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(invalid_bytes(text)),
    };
    let number: u64 = number.parse().map_err(|_| invalid_bytes(text))?;
    number.checked_mul(factor).ok_or_else(|| invalid_bytes(text))
}

fn invalid_bytes(text: &str) -> ConfigError {
    ConfigError::Invalid(format!("{text:?} is not a count of bytes: use digits and a unit, as in 20GiB"))
}

/// A count of bytes as people read it.
pub fn show_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_counts_have_units() {
        assert_eq!(parse_bytes("20GiB").unwrap(), 20 << 30);
        assert_eq!(parse_bytes("1 MB").unwrap(), 1_000_000);
        assert!(
            parse_bytes("20 XB").is_err() && parse_bytes("").is_err() && parse_bytes("99999999TiB").is_err()
        );
        assert_eq!(show_bytes(1536 << 20), "1.5 GiB");
    }
}
