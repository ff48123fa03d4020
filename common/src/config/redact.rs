//! What of a setting may be shown. No setting is a secret itself, secrets are in files; but addresses have room for one.

use std::borrow::Cow;

/// Stands where a secret was.
const HIDDEN: &str = "…";
/// Parts of the names of parameters whose values are not shown.
const SECRET_WORDS: [&str; 5] = ["password", "passwd", "secret", "token", "key"];

/// The text without passwords: of an address, the one before the host and those among its parameters.
pub fn redact(text: &str) -> Cow<'_, str> {
    let Some((scheme, rest)) = text.split_once("://") else { return text.into() };
    let (place, query) = match rest.split_once('?') {
        Some((place, query)) => (place, Some(query)),
        None => (rest, None),
    };
    let mut shown = format!("{scheme}://");
    match place.rsplit_once('@') {
        Some((user, host)) => {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            shown.push_str(name);
            if !password.is_empty() {
                shown.extend([":", HIDDEN]);
            }
            shown.extend(["@", host]);
        }
        None => shown.push_str(place),
    }
    if let Some(query) = query {
        let parameters: Vec<String> = query.split('&').map(parameter).collect();
        shown.extend(["?", &parameters.join("&")]);
    }
    shown.into()
}

/// One `name=value`; the value may be an address again.
fn parameter(text: &str) -> String {
    let Some((name, value)) = text.split_once('=') else { return text.to_owned() };
    let lower = name.to_ascii_lowercase();
    let is_file = lower.ends_with("_file");
    if !is_file && SECRET_WORDS.iter().any(|word| lower.contains(word)) {
        return format!("{name}={HIDDEN}");
    }
    format!("{name}={}", redact(value))
}

/// The same of every text in a value.
pub fn redact_value(value: &toml::Value) -> toml::Value {
    match value {
        toml::Value::String(text) => toml::Value::String(redact(text).into_owned()),
        toml::Value::Array(items) => toml::Value::Array(items.iter().map(redact_value).collect()),
        toml::Value::Table(table) => {
            toml::Value::Table(table.iter().map(|(key, value)| (key.clone(), redact_value(value))).collect())
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_addresses_are_not_shown() {
        for (given, shown) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("postgres://books:hush@db/books?sslmode=require", "postgres://books:…@db/books?sslmode=require"),
            ("postgres://books@db/books?password=hush", "postgres://books@db/books?password=…"),
            ("postgres://books:hu@sh@db/books", "postgres://books:…@db/books"),
            ("s3://b/p?secret_access_key=hush&region=x", "s3://b/p?secret_access_key=…&region=x"),
            ("s3://b/p?keys_file=/etc/keys", "s3://b/p?keys_file=/etc/keys"),
            ("s3://b?endpoint=http://me:hush@h:1", "s3://b?endpoint=http://me:…@h:1"),
        ] {
            assert_eq!(redact(given), shown);
        }
    }
}
