//! The stream of a shard's changes to the nodes that follow it: what the committer made durable here is kept until
//! every follower has it, and only then answered.
//!
//! Kept in memory and bounded: beyond a number of waiting batches changes are refused, and a
//! follower that falls behind the oldest kept entry gets all rows anew.
//! (Primary and followers with the membership kept elsewhere: Lin et al., *PacificA*, 2008.)

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use common::api::node::{ShardEntry as Entry, ShardPosition};
use common::error::{ApiError, ErrorCode};
use common::id::NodeId;
use tokio::sync::watch;

use super::committer::Answer;

/// Bytes of entries that are kept for followers.
const KEPT_BYTES_MAX: usize = 32 << 20;

/// Batches that may wait for followers.
const WAITING_MAX: usize = 1024;

/// What a follower is to get next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Perhaps none yet.
    Entries(Vec<Arc<Entry>>),
    /// The follower is at no point of what is kept: it needs all rows.
    Unknown,
}

#[derive(Default)]
struct Follower {
    acknowledged: u64,
    /// Whether answers wait for it.
    is_required: bool,
}

struct State {
    at: ShardPosition,
    kept: VecDeque<Arc<Entry>>,
    kept_bytes: usize,
    followers: BTreeMap<NodeId, Follower>,
    /// Answers of batches that some required follower does not have yet, oldest first.
    waiting: VecDeque<(u64, Vec<Answer>)>,
    is_closed: bool,
}

/// The stream of one shard, at its primary. Made when this node becomes the primary, closed when it ceases to be.
pub struct Stream {
    term: u64,
    state: Mutex<State>,
    /// Number of the last entry.
    head: watch::Sender<u64>,
    /// Number up to which every required follower has the entries.
    settled: watch::Sender<u64>,
}

impl Stream {
    /// A stream of `term` that goes on from `at`.
    pub fn new(term: u64, at: ShardPosition) -> Self {
        let state = State {
            at,
            kept: VecDeque::new(),
            kept_bytes: 0,
            followers: BTreeMap::new(),
            waiting: VecDeque::new(),
            is_closed: false,
        };
        Self {
            term,
            state: Mutex::new(state),
            head: watch::Sender::new(at.seq),
            settled: watch::Sender::new(at.seq),
        }
    }

    pub fn term(&self) -> u64 {
        self.term
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn at(&self) -> ShardPosition {
        self.state().at
    }

    pub fn is_closed(&self) -> bool {
        self.state().is_closed
    }

    /// Whether anybody is sent what is committed.
    pub(super) fn is_followed(&self) -> bool {
        !self.state().followers.is_empty()
    }

    /// Where the shard will be after the next batch.
    pub(super) fn next(&self) -> ShardPosition {
        ShardPosition { term: self.term, seq: self.at().seq + 1 }
    }

    /// Takes a batch that is durable here, with those who wait for it. Without `changes` they wait for the batches
    /// before: what they read may come from one. Empty changes are not for sending, see [`Stream::is_followed`].
    pub(super) fn committed(&self, changes: Option<Bytes>, answers: Vec<Answer>) {
        let mut state = self.state();
        if let Some(changes) = changes {
            let position = ShardPosition { term: self.term, seq: state.at.seq + 1 };
            let entry = Entry { previous: state.at, position, changes };
            state.at = position;
            // Nobody followed when it was made, so there is nothing to send; whoever follows since gets all rows.
            if state.followers.is_empty() || entry.changes.is_empty() {
                state.forget_all();
            } else {
                state.keep(Arc::new(entry));
            }
        }
        let seq = state.at.seq;
        if state.is_closed {
            drop(state);
            answers.into_iter().for_each(|answer| answer(Err(deposed())));
            return;
        }
        let settled = state.settled();
        self.tell(&state);
        if settled < seq {
            state.waiting.push_back((seq, answers));
        } else {
            drop(state);
            answers.into_iter().for_each(|answer| answer(Ok(())));
        }
    }

    /// Says how far the shard is; with the lock held, so that it never seems to go back.
    fn tell(&self, state: &State) {
        self.head.send_replace(state.at.seq);
        self.settled.send_replace(state.settled());
    }

    /// Begins to keep entries for a follower; nobody waits for it yet.
    pub fn attach(&self, follower: &NodeId) {
        self.state().followers.entry(follower.clone()).or_default();
    }

    /// A follower that is no longer sent anything.
    pub fn detach(&self, follower: &NodeId) {
        self.change(|state| {
            state.followers.remove(follower);
        });
    }

    /// From now on answers wait for the follower, or no longer do.
    pub fn require(&self, follower: &NodeId, is_required: bool) {
        self.change(|state| state.followers.entry(follower.clone()).or_default().is_required = is_required);
    }

    pub fn is_required(&self, follower: &NodeId) -> bool {
        self.state().followers.get(follower).is_some_and(|follower| follower.is_required)
    }

    /// Whether so much waits for followers that nothing more should be taken.
    pub(super) fn is_backlogged(&self) -> bool {
        self.state().waiting.len() >= WAITING_MAX
    }

    /// The follower has everything up to `seq`, durably.
    pub fn acknowledge(&self, follower: &NodeId, seq: u64) {
        self.change(|state| {
            if let Some(follower) = state.followers.get_mut(follower) {
                follower.acknowledged = follower.acknowledged.max(seq);
            }
        });
    }

    /// What the follower said before is not so: it is sent all rows.
    pub fn forget_acknowledged(&self, follower: &NodeId) {
        self.change(|state| {
            if let Some(follower) = state.followers.get_mut(follower) {
                follower.acknowledged = 0;
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        let settled = state.settled();
        let mut answers = Vec::new();
        while let Some((_, batch)) = state.waiting.pop_front_if(|(seq, _)| *seq <= settled) {
            answers.extend(batch);
        }
        state.forget_acknowledged();
        self.tell(&state);
        drop(state);
        answers.into_iter().for_each(|answer| answer(Ok(())));
    }

    /// Up to about `max_bytes` of the entries behind `from`, at least one if there is any.
    pub fn after(&self, from: ShardPosition, max_bytes: usize) -> Next {
        let state = self.state();
        if from == state.at {
            return Next::Entries(Vec::new());
        }
        let Some(first) = state.kept.iter().position(|entry| entry.previous == from) else {
            return Next::Unknown;
        };
        let mut bytes = 0;
        let fits = |entry: &&Arc<Entry>| {
            let fits = bytes < max_bytes;
            bytes += entry.changes.len();
            fits
        };
        Next::Entries(state.kept.iter().skip(first).take_while(fits).cloned().collect())
    }

    /// Number of the last entry, to wait for more.
    pub fn head(&self) -> watch::Receiver<u64> {
        self.head.subscribe()
    }

    /// Waits until every required follower has all that is committed at this moment.
    pub async fn settle(&self) {
        let seq = self.at().seq;
        let mut settled = self.settled.subscribe();
        // The sender lives as long as this stream.
        let _settled = settled.wait_for(|settled| *settled >= seq).await;
    }

    /// This node is no longer the primary: what was not answered is refused, and so is all that comes.
    pub fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        let waiting = std::mem::take(&mut state.waiting);
        state.forget_all();
        drop(state);
        waiting.into_iter().flat_map(|(_, answers)| answers).for_each(|answer| answer(Err(deposed())));
    }
}

impl State {
    fn settled(&self) -> u64 {
        let required = self.followers.values().filter(|follower| follower.is_required);
        required.map(|follower| follower.acknowledged).min().unwrap_or(u64::MAX).min(self.at.seq)
    }

    fn keep(&mut self, entry: Arc<Entry>) {
        self.kept_bytes += entry.changes.len();
        self.kept.push_back(entry);
        while self.kept_bytes > KEPT_BYTES_MAX && self.kept.len() > 1 {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.kept.pop_front() {
            self.kept_bytes -= oldest.changes.len();
        }
    }

    fn forget_acknowledged(&mut self) {
        let everywhere = self.followers.values().map(|follower| follower.acknowledged).min();
        while self.kept.front().is_some_and(|oldest| everywhere.is_none_or(|seq| oldest.position.seq <= seq))
        {
            self.forget_oldest();
        }
    }

    fn forget_all(&mut self) {
        self.kept.clear();
        self.kept_bytes = 0;
    }
}

/// The answer to whoever asked a node that is primary no longer.
pub(crate) fn deposed() -> ApiError {
    ApiError::new(ErrorCode::WrongNode, "another node serves the shard by now")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn id(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn at(term: u64, seq: u64) -> ShardPosition {
        ShardPosition { term, seq }
    }

    struct Answers {
        good: Arc<AtomicUsize>,
        refused: Arc<AtomicUsize>,
    }

    impl Answers {
        fn new() -> Self {
            Self { good: Arc::default(), refused: Arc::default() }
        }

        fn one(&self) -> Vec<Answer> {
            let (good, refused) = (self.good.clone(), self.refused.clone());
            vec![Box::new(move |result| {
                let counter = if result.is_ok() { good } else { refused };
                counter.fetch_add(1, Ordering::Relaxed);
            })]
        }

        fn counts(&self) -> (usize, usize) {
            (self.good.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
        }
    }

    fn batch(text: &str) -> Option<Bytes> {
        Some(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn an_answer_waits_for_every_required_follower_and_for_no_other() {
        let (stream, answers) = (Stream::new(3, at(2, 10)), Answers::new());
        stream.committed(batch("a"), answers.one());
        assert_eq!(answers.counts(), (1, 0), "nobody follows");
        stream.attach(&id("tokyo.n2"));
        stream.committed(batch("b"), answers.one());
        assert_eq!(answers.counts(), (2, 0), "it does not count yet");
        stream.acknowledge(&id("tokyo.n2"), 12);
        stream.require(&id("tokyo.n2"), true);
        stream.require(&id("tokyo.n3"), true);
        stream.acknowledge(&id("tokyo.n3"), 12);
        stream.committed(batch("c"), answers.one());
        stream.committed(None, answers.one());
        stream.acknowledge(&id("tokyo.n2"), 13);
        assert_eq!(answers.counts(), (2, 0));
        stream.acknowledge(&id("tokyo.n3"), 13);
        assert_eq!(answers.counts(), (4, 0));
        stream.committed(batch("d"), answers.one());
        stream.acknowledge(&id("tokyo.n2"), 14);
        stream.require(&id("tokyo.n3"), false);
        assert_eq!(answers.counts(), (5, 0), "one that is let go is not waited for");
    }

    #[test]
    fn a_follower_goes_on_from_where_it_is_and_one_of_another_history_does_not() {
        let (stream, answers) = (Stream::new(3, at(2, 10)), Answers::new());
        stream.attach(&id("tokyo.n2"));
        for text in ["a", "b", "c"] {
            stream.committed(batch(text), answers.one());
        }
        let numbers = |next: Next| match next {
            Next::Entries(entries) => entries.iter().map(|entry| entry.position.seq).collect::<Vec<_>>(),
            Next::Unknown => panic!("unknown"),
        };
        assert_eq!(numbers(stream.after(at(2, 10), 1 << 20)), [11, 12, 13]);
        assert_eq!(numbers(stream.after(at(3, 12), 1 << 20)), [13]);
        assert_eq!(numbers(stream.after(at(2, 10), 1)), [11], "at least one");
        assert_eq!(numbers(stream.after(at(3, 13), 1)), [0u64; 0]);
        assert_eq!(stream.after(at(2, 12), 1), Next::Unknown, "that one took another path");
        assert_eq!(stream.after(at(3, 14), 1), Next::Unknown, "nor from what is not there");
        stream.acknowledge(&id("tokyo.n2"), 12);
        assert_eq!(stream.after(at(3, 11), 1), Next::Unknown, "what all have is forgotten");
    }

    #[test]
    fn what_is_not_acknowledged_when_another_takes_over_is_refused() {
        let (stream, answers) = (Stream::new(1, at(1, 0)), Answers::new());
        stream.require(&id("tokyo.n2"), true);
        stream.committed(batch("a"), answers.one());
        stream.close();
        assert_eq!(answers.counts(), (0, 1));
        stream.committed(batch("b"), answers.one());
        assert_eq!(answers.counts(), (0, 2));
        stream.acknowledge(&id("tokyo.n2"), 2);
        assert_eq!(answers.counts(), (0, 2));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let (stream, answers) = (Stream::new(1, at(1, 0)), Answers::new());
        stream.attach(&id("tokyo.n2"));
        let large = Bytes::from(vec![0; 1 << 20]);
        for _ in 0..40 {
            stream.committed(Some(large.clone()), answers.one());
        }
        assert_eq!(stream.after(at(1, 0), 1), Next::Unknown);
        assert!(matches!(stream.after(at(1, 30), 1), Next::Entries(entries) if entries.len() == 1));
    }
}
