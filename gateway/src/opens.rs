//! *open*, for many deliveries in one call: what is asked of a node while it works on earlier calls goes out together in
//! the next.
//!
//! A delivery that finds no call at work goes out at once. Others wait for that call's answer, as they would for the commit
//! that it waits for, or until there are [`COMPANY`] of them: these do not wait. So a call holds one delivery when there is
//! little to do, and more the busier the node is; what a call costs both sides, and the node's commit, is then shared by
//! many.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::api::node::{NodeClient, OpenAnswer, OpenBatch, OpenRequest};
use common::client::CallError;
use common::error::ErrorBody;
use common::trace;
use tokio::sync::oneshot;

/// Calls at work at one node. Two: while it commits what one asks for, the other is on its way.
const CALLS_MAX: usize = 2;
/// So many go out while another call is at work.
const COMPANY: usize = 16;
/// Most deliveries in one call.
const BATCH_MAX: usize = 128;

type Answer = Result<OpenAnswer, CallError>;

struct Waiting {
    request: OpenRequest,
    answer: oneshot::Sender<Answer>,
}

/// What waits for one node.
#[derive(Default)]
struct Lane {
    state: Mutex<LaneState>,
}

#[derive(Default)]
struct LaneState {
    waiting: Vec<Waiting>,
    calls: usize,
}

impl LaneState {
    /// Whether what waits may go out beside so many other calls.
    fn may_go(&self, others: usize) -> bool {
        self.waiting.len() >= if others == 0 { 1 } else { COMPANY }
    }
}

/// Deliveries on their way to being opened, by node.
#[derive(Default)]
pub struct Opens {
    /// By base address: there are as many as the site has had nodes.
    lanes: Mutex<HashMap<Arc<str>, Arc<Lane>>>,
}

impl Opens {
    /// Opens one delivery. Dropped before the call went out, nothing is asked for; dropped later, the delivery may be open.
    ///
    /// # Errors
    /// Of the call, for all that went with it, or the node's refusal of this delivery alone.
    pub async fn open(&self, node: &NodeClient, request: OpenRequest) -> Answer {
        let lane = self.lane(node);
        let (answer, answered) = oneshot::channel();
        if lane.join(Waiting { request, answer }) {
            trace::spawn(lane.work(node.clone()));
        }
        answered.await.unwrap_or_else(|_| Err(lost(node)))
    }

    fn lane(&self, node: &NodeClient) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        match lanes.get(node.base()) {
            Some(lane) => lane.clone(),
            None => lanes.entry(node.base().into()).or_default().clone(),
        }
    }
}

fn lost(node: &NodeClient) -> CallError {
    CallError::Unreachable { url: node.base().to_owned(), source: "the call was given up".into() }
}

impl Lane {
    fn state(&self) -> MutexGuard<'_, LaneState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers whether a call is to be made for what waits.
    fn join(&self, waiting: Waiting) -> bool {
        let mut state = self.state();
        state.waiting.push(waiting);
        let goes = state.calls < CALLS_MAX && state.may_go(state.calls);
        state.calls += usize::from(goes);
        goes
    }

    /// What goes out next, without those whose clients have gone; `None` ends the caller's work.
    fn take(&self) -> Option<Vec<Waiting>> {
        let mut state = self.state();
        state.waiting.retain(|waiting| !waiting.answer.is_closed());
        if !state.may_go(state.calls - 1) {
            state.calls -= 1;
            return None;
        }
        let count = state.waiting.len().min(BATCH_MAX);
        Some(state.waiting.drain(..count).collect())
    }

    /// Makes calls, one after the other, as long as there is something to ask for.
    async fn work(self: Arc<Self>, node: NodeClient) {
        while let Some(batch) = self.take() {
            let (opens, answers): (Vec<_>, Vec<_>) =
                batch.into_iter().map(|waiting| (waiting.request, waiting.answer)).unzip();
            let outcome = node.open(&OpenBatch { opens }).await;
            tell(&node, answers, outcome.map(|outcome| outcome.answers));
        }
    }
}

/// Gives each its answer, or all the call's failure.
fn tell(
    node: &NodeClient,
    answers: Vec<oneshot::Sender<Answer>>,
    outcome: Result<Vec<Result<OpenAnswer, ErrorBody>>, CallError>,
) {
    let url = || node.base().to_owned();
    let each: Box<dyn Iterator<Item = Answer>> = match outcome {
        Ok(outcome) => {
            let short = std::iter::repeat_with(|| Err(lost(node)));
            let refused = |body| CallError::Refused { url: url(), body };
            Box::new(outcome.into_iter().map(move |answer| answer.map_err(refused)).chain(short))
        }
        Err(CallError::Refused { body, .. }) => Box::new(std::iter::repeat_with(move || {
            Err(CallError::Refused { url: url(), body: body.clone() })
        })),
        Err(failed) => {
            let told = common::error::chain(&failed);
            Box::new(std::iter::repeat_with(move || {
                Err(CallError::Unreachable { url: url(), source: told.clone().into() })
            }))
        }
    };
    for (answer, outcome) in answers.into_iter().zip(each) {
        // Whoever went away meanwhile has told the delivery's end.
        let _unheard = answer.send(outcome);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::extract::State;
    use axum::response::Response;
    use axum::routing::post;
    use common::api::extract::{self, ApiQuestion};
    use common::api::node::OpenAnswers;
    use common::auth::ClusterSecret;
    use common::client::{HttpClient, ServerClient};
    use common::error::{ApiResult, ErrorCode};
    use common::id::{ClientId, DeliveryId};
    use common::time::Clock;
    use futures_util::future::join_all;
    use tokio::sync::Semaphore;
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// A node that answers a call for each permit, and refuses every delivery whose id ends with an odd byte.
    struct FakeNode {
        permits: Semaphore,
        calls: AtomicUsize,
    }

    async fn answer(
        State(node): State<Arc<FakeNode>>,
        ApiQuestion(batch, form): ApiQuestion<OpenBatch>,
    ) -> ApiResult<Response> {
        node.calls.fetch_add(1, Ordering::SeqCst);
        node.permits.acquire().await.unwrap().forget();
        let answer = |request: &OpenRequest| match request.delivery.as_bytes()[15] % 2 {
            0 => Ok(OpenAnswer { holding: None, begin: None }),
            _ => {
                let message = request.delivery.to_string();
                Err(ErrorBody { code: ErrorCode::QuotaExceeded, message, request_id: String::new() })
            }
        };
        extract::answer::<OpenBatch>(form, &OpenAnswers { answers: batch.opens.iter().map(answer).collect() })
    }

    async fn start() -> (Arc<FakeNode>, NodeClient, CancellationToken) {
        let node = Arc::new(FakeNode { permits: Semaphore::new(0), calls: AtomicUsize::new(0) });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let routes = Router::new().route("/v1/deliveries/open", post(answer)).with_state(node.clone());
        let stop = CancellationToken::new();
        tokio::spawn(common::server::accept_loop(listener, routes, stop.clone()));
        let secret = ClusterSecret::new("0123456789abcdef0123456789abcdef").unwrap();
        let server = ServerClient::new(HttpClient::new(), secret, "gateway/tokyo.g1", Clock::System);
        (node, NodeClient::new(server, &base), stop)
    }

    fn request(number: u8) -> OpenRequest {
        let mut id = [0; 16];
        id[15] = number;
        OpenRequest {
            delivery: DeliveryId::from_bytes(id),
            client: ClientId::new("bob").unwrap(),
            name: "alice/song".parse().unwrap(),
            range: None,
            surrogate: None,
            mobile_access: None,
            quota: Default::default(),
        }
    }

    async fn until(condition: impl Fn() -> bool) {
        let fulfilled = async {
            while !condition() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), fulfilled).await.expect("it comes about");
    }

    type Asked = tokio::task::JoinHandle<(u8, Answer)>;

    fn ask(opens: &Arc<Opens>, client: &NodeClient, number: u8) -> Asked {
        let (opens, client) = (opens.clone(), client.clone());
        tokio::spawn(async move { (number, opens.open(&client, request(number)).await) })
    }

    /// As many calls as may be at work; the ids are even.
    async fn busy(node: &FakeNode, opens: &Arc<Opens>, client: &NodeClient) -> Vec<Asked> {
        let mut asked = Vec::new();
        for call in 1..=CALLS_MAX {
            let deliveries = if call == 1 { 1 } else { COMPANY };
            asked.extend((0..deliveries).map(|_| ask(opens, client, 200)));
            until(|| node.calls.load(Ordering::SeqCst) == call).await;
        }
        asked
    }

    #[tokio::test]
    async fn a_few_wait_for_the_call_at_work_and_many_do_not() {
        let (node, client, _stop) = start().await;
        let opens = Arc::new(Opens::default());
        let mut asked = vec![ask(&opens, &client, 0)];
        until(|| node.calls.load(Ordering::SeqCst) == 1).await;
        asked.extend((1..COMPANY).map(|_| ask(&opens, &client, 0)));
        let lane = opens.lane(&client);
        until(|| lane.state().waiting.len() == COMPANY - 1).await;
        assert_eq!(lane.state().calls, 1);
        asked.push(ask(&opens, &client, 0));
        until(|| node.calls.load(Ordering::SeqCst) == 2).await;
        node.permits.add_permits(1000);
        for answered in join_all(asked).await {
            assert!(answered.unwrap().1.is_ok());
        }
    }

    #[tokio::test]
    async fn what_comes_while_calls_are_at_work_shares_the_next_and_each_gets_its_own_answer() {
        let (node, client, _stop) = start().await;
        let opens = Arc::new(Opens::default());
        let mut asked = busy(&node, &opens, &client).await;
        asked.extend((0..100).map(|number| ask(&opens, &client, number)));
        let lane = opens.lane(&client);
        until(|| lane.state().waiting.len() == 100).await;
        node.permits.add_permits(1000);
        for answered in join_all(asked).await {
            let (number, answer) = answered.unwrap();
            match answer {
                Ok(answer) => assert!(number % 2 == 0 && answer.begin.is_none()),
                Err(error) => {
                    assert_eq!(error.code(), Some(ErrorCode::QuotaExceeded));
                    assert!(error.to_string().contains(&request(number).delivery.to_string()), "{error}");
                }
            }
        }
        assert_eq!(node.calls.load(Ordering::SeqCst), CALLS_MAX + 1, "the hundred that waited went together");
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_not_asked_for_and_a_failed_call_fails_all_that_went_with_it() {
        let (node, client, stop) = start().await;
        let opens = Arc::new(Opens::default());
        let first = busy(&node, &opens, &client).await;
        let gone = ask(&opens, &client, 40);
        let lane = opens.lane(&client);
        until(|| lane.state().waiting.len() == 1).await;
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        node.permits.add_permits(CALLS_MAX);
        for answer in join_all(first).await {
            assert!(answer.unwrap().1.is_ok());
        }
        until(|| lane.state().calls == 0).await;
        assert_eq!(node.calls.load(Ordering::SeqCst), CALLS_MAX, "nothing was asked for whom nobody waits");
        // One more is answered after its node was told to stop; the next finds nobody.
        stop.cancel();
        node.permits.add_permits(1000);
        let failed = async {
            while opens.open(&client, request(0)).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), failed).await.expect("the node is gone");
    }
}
