//! A challenge is answered once, whoever asks, also after a restart.

use common::api::mobile_access::AnsweredChallenge;
use common::visit::Nonce;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_challenge_is_answered_once_also_over_a_restart() {
    let (dir, search) = (tempfile::tempdir().unwrap(), Fake::start().await);
    let store = format!("file:{}?size=300MiB", dir.path().join("store").display());
    let config = config("n1", &store, dir.path(), &search.url);
    let node = start(config.clone()).await;
    ready(&node).await;
    let expires = Clock::System.now().saturating_add(Duration::from_secs(60));
    let first = AnsweredChallenge {
        client: client_id("carol"),
        nonce: Nonce([1; 16]),
        attempt: Nonce([2; 16]),
        expires,
    };
    node.client.answer_challenge(&first).await.unwrap();
    // A gateway whose answer was lost asks again.
    node.client.answer_challenge(&first).await.unwrap();
    let again = AnsweredChallenge { attempt: Nonce([3; 16]), ..first.clone() };
    let replayed = Some(ErrorCode::ChallengeReplayed);
    assert_eq!(node.client.answer_challenge(&again).await.unwrap_err().code(), replayed);
    let other = AnsweredChallenge { nonce: Nonce([4; 16]), ..again.clone() };
    node.client.answer_challenge(&other).await.unwrap();
    let other = AnsweredChallenge { client: client_id("bob"), ..again.clone() };
    node.client.answer_challenge(&other).await.unwrap();

    node.running.stop().await;
    let node = start(config).await;
    ready(&node).await;
    assert_eq!(node.client.answer_challenge(&again).await.unwrap_err().code(), replayed);
    node.running.stop().await;
}
