//! Messages between conductor and agent: JSON with its length before it, over one TCP connection. Before anything else
//! both prove that they have the same token, without showing it: each hashes the other's random number with it.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::AgentError;
use super::parts::Parts;
use crate::plan::Plan;
use crate::protocol::EtagRule;
use crate::target::Target;
use crate::timeline::{Lane, Second};

/// Results with the ids of all deliveries are long; nothing else is.
const MESSAGE_LEN_MAX: u32 = 1 << 30;
/// Of what comes before the other side has proved that it has the token.
const GREETING_LEN_MAX: u32 = 1 << 10;
const GREETING_TIME_MAX: Duration = Duration::from_secs(5);
const TOKEN_LEN_MIN: usize = 16;

/// What both sides have to know.
#[derive(Clone)]
pub struct AgentToken([u8; 32]);

impl AgentToken {
    /// # Errors
    /// There is no such file, or the token is too short to be a secret.
    pub fn read(path: &Path) -> Result<Self, AgentError> {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|source| AgentError::TokenFile { path: path.to_owned(), source })?;
        let (text, min) = (text.trim(), TOKEN_LEN_MIN);
        if text.len() < min {
            return Err(AgentError::ShortToken { path: path.to_owned(), len: text.len(), min });
        }
        Ok(Self::new(text))
    }

    fn new(text: &str) -> Self {
        Self(blake3::derive_key("dozo bench agent token v1", text.as_bytes()))
    }

    fn proof(&self, side: Side, conductor: &[u8; 32], agent: &[u8; 32]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&[side as u8]).update(conductor).update(agent);
        hasher.finalize()
    }
}

/// Who proves something: else one side's proof could be sent back as the other's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Conductor = 1,
    Agent = 2,
}

/// From the conductor.
#[derive(Serialize, Deserialize)]
pub enum Ask {
    /// What time is it?
    Clock,
    Drive(Box<Order>),
}

#[derive(Serialize, Deserialize)]
pub struct Order {
    pub plan: Plan,
    pub target: Target,
    pub first_worker: u64,
    /// Of the objects that are asked for once, those that this agent asks for.
    pub one_hits: Range<u64>,
    pub etags: Option<EtagRule>,
    /// When the load begins, in nanoseconds since 1970 by the agent's own clock.
    pub start_unix_ns: i128,
}

/// From the agent.
#[derive(Serialize, Deserialize)]
pub enum Tell {
    Clock {
        unix_ns: i128,
    },
    Accepted,
    /// The load goes on, and this was done since the last time.
    Alive {
        seconds: Vec<(u64, Lane, Second)>,
    },
    Done(Box<Parts>),
    Refused {
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Greeting {
    version: String,
    random: [u8; 32],
}

/// A connection whose other end has proved itself.
pub struct Link {
    stream: TcpStream,
    peer: String,
}

impl Link {
    /// Proves that we have the token and has the other side prove it.
    ///
    /// # Errors
    /// The other side has another token, or does not speak this language.
    pub async fn greet(
        stream: TcpStream,
        peer: String,
        token: &AgentToken,
        side: Side,
    ) -> Result<Self, AgentError> {
        let mut link = Self { stream, peer };
        // Without it a failure is only a matter of speed.
        let _is_slow = link.stream.set_nodelay(true);
        let mut random = [0; 32];
        common::auth::fill_random(&mut random);
        let version = env!("CARGO_PKG_VERSION").to_owned();
        link.send(&Greeting { version, random }).await?;
        let greeting: Greeting = link.hear(GREETING_LEN_MAX, GREETING_TIME_MAX).await?;
        let (conductor, agent) = match side {
            Side::Conductor => (random, greeting.random),
            Side::Agent => (greeting.random, random),
        };
        let other = if side == Side::Conductor { Side::Agent } else { Side::Conductor };
        link.send(&token.proof(side, &conductor, &agent).as_bytes()).await?;
        let proof: [u8; 32] = match link.hear(GREETING_LEN_MAX, GREETING_TIME_MAX).await {
            // Who finds our proof wrong hangs up.
            Err(AgentError::Broken { peer, .. }) => return Err(AgentError::Token { peer }),
            proof => proof?,
        };
        // The comparison of hashes takes the same time wherever they differ.
        if token.proof(other, &conductor, &agent) != blake3::Hash::from_bytes(proof) {
            return Err(AgentError::Token { peer: link.peer });
        }
        Ok(link)
    }

    /// # Errors
    /// The connection is broken.
    pub async fn send(&mut self, message: &impl Serialize) -> Result<(), AgentError> {
        let understood = |source| AgentError::Message { peer: self.peer.clone(), source };
        let text = serde_json::to_vec(message).map_err(understood)?;
        let broken = |source| AgentError::Broken { peer: self.peer.clone(), source };
        let len = u32::try_from(text.len()).map_err(std::io::Error::other).map_err(broken)?;
        self.stream.write_all(&len.to_be_bytes()).await.map_err(broken)?;
        self.stream.write_all(&text).await.map_err(broken)
    }

    /// The next message.
    ///
    /// # Errors
    /// There is none within `limit`, the connection is broken, or it says something else.
    pub async fn receive<T: DeserializeOwned>(&mut self, limit: Duration) -> Result<T, AgentError> {
        self.hear(MESSAGE_LEN_MAX, limit).await
    }

    async fn hear<T: DeserializeOwned>(&mut self, len_max: u32, limit: Duration) -> Result<T, AgentError> {
        let text = tokio::time::timeout(limit, async {
            let len = self.stream.read_u32().await?;
            if len > len_max {
                return Err(std::io::Error::other(format!(
                    "a message of {len} bytes, {len_max} is the most"
                )));
            }
            let mut text = vec![0; len as usize];
            self.stream.read_exact(&mut text).await?;
            Ok(text)
        });
        let peer = || self.peer.clone();
        let Ok(text) = text.await else { return Err(AgentError::Silent { peer: peer(), limit }) };
        let text = text.map_err(|source| AgentError::Broken { peer: peer(), source })?;
        serde_json::from_slice(&text).map_err(|source| AgentError::Message { peer: peer(), source })
    }

    /// Returns once the other side has hung up, or said something that nobody waits for.
    pub async fn ended(&self) {
        // An error is an end as well.
        let _readable = self.stream.readable().await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn greeted(one: &str, other: &str) -> (Result<Link, AgentError>, Result<Link, AgentError>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let (one, other) = (AgentToken::new(one), AgentToken::new(other));
        tokio::join!(
            Link::greet(stream, "the agent".into(), &one, Side::Conductor),
            Link::greet(accepted, "the conductor".into(), &other, Side::Agent)
        )
    }

    #[tokio::test]
    async fn both_sides_need_the_same_token() {
        let (one, other) = greeted("a token that is long", "a token that is long").await;
        let (mut one, mut other) = (one.ok().unwrap(), other.ok().unwrap());
        one.send(&Ask::Clock).await.unwrap();
        assert!(matches!(other.receive::<Ask>(Duration::from_secs(5)).await.unwrap(), Ask::Clock));
        let (one, other) = greeted("a token that is long", "another one that is long").await;
        assert!(matches!(one.err().unwrap(), AgentError::Token { .. }));
        assert!(matches!(other.err().unwrap(), AgentError::Token { .. }));
    }

    #[test]
    fn short_tokens_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "short\n").unwrap();
        let error = AgentToken::read(file.path()).err().unwrap();
        assert!(matches!(error, AgentError::ShortToken { len: 5, .. }), "{error}");
        std::fs::write(file.path(), "long enough to be one\n").unwrap();
        assert!(AgentToken::read(file.path()).is_ok());
    }
}
