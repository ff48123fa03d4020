//! Why a command did not do its work, in words for the person who typed it: what failed, the server's own
//! message with code and request id, and the next step.

use std::path::Path;

use common::client::CallError;
use common::config::ConfigError;
use common::error::{ErrorCode, chain};
use common::id::InvalidId;
use common::server::StartError;

/// Exit status of a command that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The command was understood and could not be carried out.
    Failed,
    /// The command line or the configuration is wrong: the same call again cannot work.
    Usage,
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
        }
    }
}

/// A command's failure.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub exit: Exit,
    pub message: String,
    /// What to do next, when that is known.
    pub next_step: Option<String>,
}

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, message: message.into(), next_step: None }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, ..Self::new(message) }
    }

    /// A file operation that failed: `doing` is a verb phrase, as in "reading".
    pub fn file(doing: &str, path: &Path, error: &std::io::Error) -> Self {
        Self::new(format!("{doing} {}: {error}", path.display()))
    }

    pub fn with_next_step(mut self, next_step: impl Into<String>) -> Self {
        self.next_step = Some(next_step.into());
        self
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match &error {
            CallError::Refused { body, .. } => {
                let request = match body.request_id.as_str() {
                    "" => String::new(),
                    id => format!(", request {id}"),
                };
                let mut failure = Self::new(format!("{} ({}{request})", body.message, body.code));
                failure.next_step = next_step(body.code).map(str::to_owned);
                failure
            }
            CallError::Unreachable { .. } | CallError::Timeout { .. } => Self::new(chain(&error))
                .with_next_step(
                    "see that the server runs (`dozo up`), and that DOZO_ENDPOINTS names its endpoints.json",
                ),
            CallError::Answer { .. } => Self::new(chain(&error))
                .with_next_step("see that client and servers are of the same version (`dozo --version`)"),
        }
    }
}

impl From<InvalidId> for Failure {
    fn from(error: InvalidId) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(chain(&error)).with_next_step(
            "`dozo config check ROLE --config FILE` checks a configuration without starting it",
        )
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let failure = Self::new(chain(&error));
        match error {
            StartError::Listen { .. } => failure
                .with_next_step("stop what listens there, or choose other ports (`--port-base`, `--listen`)"),
            StartError::Failed { .. } => failure,
        }
    }
}

/// What helps against an answer, where one thing usually does.
fn next_step(code: ErrorCode) -> Option<&'static str> {
    Some(match code {
        ErrorCode::Unauthenticated => "the token is not known here: see the clients in endpoints.json",
        ErrorCode::Forbidden => "ask as a client that may (`--as CLIENT`), or have the bucket made public",
        ErrorCode::CardUnknown => "look at the card's client and home; the home site's operator makes cards",
        ErrorCode::CardDisabled | ErrorCode::ClientDisabled => "ask the home site's operator, who did that",
        ErrorCode::ChallengeInvalid
        | ErrorCode::ChallengeExpired
        | ErrorCode::ChallengeReplayed
        | ErrorCode::VisitInvalid
        | ErrorCode::VisitExpired
        | ErrorCode::RequestReplayed => "`dozo connect --card FILE` begins anew",
        ErrorCode::SignatureInvalid => "look whether the card's file or token is the right one",
        ErrorCode::SiteNotFound => "look at the card's home: this cluster has no such site",
        ErrorCode::HomeUnreachable => "the client's home site is down or cut off; try again later",
        ErrorCode::ContentNotFound => "`dozo ls BUCKET --as CLIENT` shows what there is",
        ErrorCode::BucketNotFound => "`dozo bucket list` shows the buckets, `dozo bucket add` makes one",
        ErrorCode::ClientNotFound => "`dozo client list` shows the clients",
        ErrorCode::WrongSite => "leave `--site` out: this can be done only at the client's home site",
        ErrorCode::NodeFull => "add a storage node: `dozo storage-node --help`",
        ErrorCode::ContentMismatch => "send it again; if it happens again, look for a faulty disk or network",
        ErrorCode::Internal | ErrorCode::Damaged => "look for the request id in the server's log",
        code if code.is_retryable() => "`dozo status` shows who is down; then try again",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::error::ErrorBody;

    #[test]
    fn a_refusal_shows_message_code_request_id_and_next_step() {
        let body = ErrorBody {
            code: ErrorCode::BucketNotFound,
            message: "there is no bucket x".into(),
            request_id: "ab-1".into(),
        };
        let failure = Failure::from(CallError::Refused { url: "http://h/".into(), body });
        assert_eq!(failure.to_string(), "there is no bucket x (bucket_not_found, request ab-1)");
        assert!(failure.next_step.unwrap().contains("dozo bucket list"));
        assert_eq!(failure.exit.code(), 1);
    }
}
