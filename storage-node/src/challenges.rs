//! Challenges that cards of clients have answered: each is good once, whichever gateway of the site takes the answer.
//!
//! A challenge is noted only when its answer was found to be right, so nobody without a card can fill these rows. What
//! has expired is deleted with the client's next answer: what stays is never more than one client did in a few minutes.

use std::ops::ControlFlow;

use common::api::mobile_access::AnsweredChallenge as Request;
use common::error::{ApiError, ApiResult, ErrorCode};
use common::time::UnixMillis;

use crate::catalog::key::{self, Key};
use crate::catalog::rows::{AnsweredChallenge, Row};
use crate::catalog::txn::{Rows, Txn};

/// Answers of one client that are remembered at the same time.
const ANSWERS_MAX: usize = 1000;

/// Notes that a challenge is answered. `ChallengeReplayed` if it was already, by another attempt.
pub fn answer(txn: &mut Txn<'_>, request: &Request, now: UnixMillis) -> ApiResult<()> {
    let key = Key::AnsweredChallenge(&request.client, &request.nonce);
    if let Some(known) = txn.get::<AnsweredChallenge>(key)? {
        if known.attempt == request.attempt {
            return Ok(());
        }
        return Err(ApiError::new(
            ErrorCode::ChallengeReplayed,
            "this challenge was answered before, and each is good once; begin anew with `dozo connect`",
        ));
    }
    let (mut expired, mut live) = (Vec::new(), 0);
    txn.scan(&key::answered_challenges(&request.client), &mut |key, value| {
        if AnsweredChallenge::decode(value)?.expires < now {
            expired.push(key.to_vec());
        } else {
            live += 1;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if live >= ANSWERS_MAX {
        return Err(ApiError::new(
            ErrorCode::TooManyRequests,
            format!(
                "client {} connected {live} times in a few minutes; try again in a while",
                request.client
            ),
        ));
    }
    for key in expired {
        txn.delete_raw(key);
    }
    txn.put(key, &AnsweredChallenge { attempt: request.attempt, expires: request.expires });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use common::id::ClientId;
    use common::telemetry::MetricsRegistry;
    use common::visit::Nonce;

    use super::*;
    use crate::catalog::Catalog;
    use crate::store;

    fn request(number: u128, expires: u64) -> Request {
        let client = ClientId::new("carol").unwrap();
        let (nonce, attempt) = (Nonce(number.to_be_bytes()), Nonce([9; 16]));
        Request { client, nonce, attempt, expires: UnixMillis(expires) }
    }

    #[tokio::test]
    async fn what_has_expired_is_forgotten_and_what_has_not_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let opened = store::open(&"memory:".parse().unwrap(), Path::new("/nowhere"), &MetricsRegistry::new())
            .await
            .unwrap();
        let catalog = Catalog::open(dir.path(), opened.log, &opened.log_id, 1 << 20).await.unwrap();
        let kept =
            || catalog.read(|rows| rows.count(&key::answered_challenges(&request(0, 0).client))).unwrap();
        let many = catalog.commit(|txn| {
            (0..ANSWERS_MAX as u128).try_for_each(|n| answer(txn, &request(n, 1000), UnixMillis(0)))
        });
        many.await.unwrap();
        assert_eq!(kept(), ANSWERS_MAX as u64);
        let one_more =
            |now| catalog.commit(move |txn| answer(txn, &request(u128::MAX, 2000), UnixMillis(now)));
        assert_eq!(one_more(1000).await.unwrap_err().code, ErrorCode::TooManyRequests);
        one_more(1001).await.unwrap();
        assert_eq!(kept(), 1);
        catalog.close().await;
    }
}
