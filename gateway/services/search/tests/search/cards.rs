//! Cards: whose they are, and that they can be shut out.

use common::api::search::{DisableCards, NewCard, NewClient};
use common::card::{PrivateKey, Signer};
use common::error::ErrorCode;

use crate::harness::{TestSearch, id};

#[tokio::test]
async fn a_card_stands_for_one_client_until_it_is_disabled() {
    let search = TestSearch::new().await.with_alice().await;
    search.client.create_client(&NewClient { client: id("bob"), site: id("tokyo") }).await.unwrap();
    let cards: Vec<_> = (0..3).map(|_| PrivateKey::generate().public_key()).collect();
    let code = |error: common::client::CallError| error.code();
    let new = |client, card| NewCard { client: id(client), card };
    let first = search.client.add_card(&new("alice", cards[0])).await.unwrap();
    assert_eq!((first.client.as_str(), first.disabled), ("alice", false));
    assert_eq!(search.client.add_card(&new("alice", cards[0])).await.unwrap(), first, "twice is once");
    let refused = search.client.add_card(&new("bob", cards[0])).await.unwrap_err();
    assert_eq!(code(refused), Some(ErrorCode::Conflict));
    let refused = search.client.add_card(&new("carol", cards[0])).await.unwrap_err();
    assert_eq!(code(refused), Some(ErrorCode::ClientNotFound));
    search.client.add_card(&new("alice", cards[1])).await.unwrap();
    search.client.add_card(&new("bob", cards[2])).await.unwrap();

    let holder = search.client.card(&cards[0]).await.unwrap();
    assert_eq!((holder.card, holder.client.site), (first, id("tokyo")));
    let unknown = PrivateKey::generate().public_key();
    assert_eq!(code(search.client.card(&unknown).await.unwrap_err()), Some(ErrorCode::CardUnknown));
    let of_alice = search.client.cards(Some(&id("alice"))).await.unwrap();
    assert_eq!(of_alice.len(), 2);
    assert_eq!(search.client.cards(None).await.unwrap().len(), 3);

    let not_hers = DisableCards { client: id("alice"), card: Some(cards[2]) };
    let refused = search.client.disable_cards(&not_hers).await.unwrap_err();
    assert_eq!(code(refused), Some(ErrorCode::CardUnknown));
    let one = DisableCards { client: id("alice"), card: Some(cards[1]) };
    assert!(search.client.disable_cards(&one).await.unwrap()[0].disabled);
    let search = search.restart().await;
    assert!(!search.client.card(&cards[0]).await.unwrap().card.disabled);
    assert!(search.client.card(&cards[1]).await.unwrap().card.disabled);
    assert!(search.client.add_card(&new("alice", cards[1])).await.unwrap().disabled, "it stays disabled");
    let all = DisableCards { client: id("alice"), card: None };
    assert_eq!(search.client.disable_cards(&all).await.unwrap().len(), 2);
    assert!(!search.client.card(&cards[2]).await.unwrap().card.disabled);
    search.client.disable_client(&id("bob")).await.unwrap();
    assert!(search.client.card(&cards[2]).await.unwrap().client.disabled);
}
