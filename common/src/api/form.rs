//! How a body is written: as JSON, or compact, for what servers say to each other too often for text.
//!
//! Compact is a version byte, then postcard, as rows are stored. Postcard does not tell its fields' names, so both sides
//! must know the same version; a server that does not is spoken to in JSON, which every one reads.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A question that may be asked compactly, and its answer.
pub trait Compact {
    /// Of both: to be raised when a type in either changes.
    const VERSION: u8;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Json,
    Compact,
}

const COMPACT: &str = "application/vnd.dozo.compact";

/// A body that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FormError {
    #[error("the body is not the JSON that this path takes: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the body is not the compact form that this path takes: {0}")]
    Compact(#[from] postcard::Error),
    #[error("the body has version {found} of its compact form, known is {known}; send JSON")]
    Version { found: u8, known: u8 },
    #[error("the body is empty")]
    Empty,
}

impl Form {
    /// That of a body with these headers.
    pub fn of(headers: &HeaderMap) -> Self {
        let compact = headers.get(CONTENT_TYPE).is_some_and(|form| form == COMPACT);
        if compact { Self::Compact } else { Self::Json }
    }

    pub fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Json => "application/json",
            Self::Compact => COMPACT,
        })
    }

    /// Writes a question `Q`, or its answer.
    ///
    /// # Errors
    /// `T` is none that the form can hold.
    pub fn write<Q: Compact, T: Serialize>(self, body: &T) -> Result<Vec<u8>, FormError> {
        Ok(match self {
            Self::Json => serde_json::to_vec(body)?,
            Self::Compact => postcard::to_extend(body, vec![Q::VERSION])?,
        })
    }

    /// Reads a question `Q`, or its answer.
    ///
    /// # Errors
    /// The bytes are no `T` in this form, or of another version.
    pub fn read<Q: Compact, T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T, FormError> {
        match (self, bytes.split_first()) {
            (Self::Json, _) => Ok(serde_json::from_slice(bytes)?),
            (Self::Compact, Some((version, rest))) if *version == Q::VERSION => {
                Ok(postcard::from_bytes(rest)?)
            }
            (Self::Compact, Some((version, _))) => {
                Err(FormError::Version { found: *version, known: Q::VERSION })
            }
            (Self::Compact, None) => Err(FormError::Empty),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Question {
        words: Vec<String>,
        answer: Result<u64, String>,
    }

    impl Compact for Question {
        const VERSION: u8 = 3;
    }

    struct Later;

    impl Compact for Later {
        const VERSION: u8 = 4;
    }

    #[test]
    fn both_forms_are_read_as_they_were_written_and_told_apart_by_their_type() {
        let question = Question { words: vec!["a".into(), "b".into()], answer: Err("no".into()) };
        for form in [Form::Json, Form::Compact] {
            let bytes = form.write::<Question, _>(&question).unwrap();
            assert_eq!(form.read::<Question, Question>(&bytes).unwrap(), question);
            assert_eq!(Form::of(&HeaderMap::from_iter([(CONTENT_TYPE, form.content_type())])), form);
        }
        assert_eq!(Form::of(&HeaderMap::new()), Form::Json);
    }

    #[test]
    fn another_version_and_what_is_no_body_are_refused() {
        let bytes = Form::Compact.write::<Later, _>(&7u64).unwrap();
        let refused = Form::Compact.read::<Question, u64>(&bytes).unwrap_err();
        assert!(matches!(refused, FormError::Version { found: 4, known: 3 }), "{refused}");
        assert!(Form::Compact.read::<Question, Question>(&[]).is_err());
        assert!(Form::Compact.read::<Question, Question>(&[3, 200]).is_err());
        assert!(Form::Json.read::<Question, Question>(b"{").is_err());
    }
}
