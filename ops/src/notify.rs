//! What a server tells systemd (`Type=notify`): that it goes on starting, that it is ready, that it lives, that it stops.
//! Without `NOTIFY_SOCKET` in the environment nobody is told anything.
//!
//! "Lives" is told by a task of the event loop, through another that it starts: if the loop does not turn, or no task
//! gets its turn, systemd hears nothing and starts the server anew.

use std::io::ErrorKind;
use std::time::Duration;

use common::server::Health;
use sd_notify::NotifyState;
use tokio::sync::oneshot;

/// How often readiness is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How often a start that goes on asks for more time, and for how much: enough for a few that are late.
const EXTEND_INTERVAL: Duration = Duration::from_secs(5);
const EXTEND_BY: Duration = Duration::from_secs(30);

/// Tells systemd of one server until the process ends.
pub struct Notifier {
    started: Option<oneshot::Sender<Health>>,
}

impl Notifier {
    /// Begins to tell that the server is starting.
    pub fn begin() -> Self {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Self { started: None };
        }
        let (started, health) = oneshot::channel();
        tokio::spawn(tell(health));
        Self { started: Some(started) }
    }

    /// From now on the server's health says whether it is ready.
    pub fn started(&mut self, health: Health) {
        // Who is not there to hear it needs not to be told.
        let _heard = self.started.take().map(|started| started.send(health));
    }

    /// The server stops.
    pub fn stopping(&self) {
        send(&[NotifyState::Stopping]);
    }
}

async fn tell(mut health: oneshot::Receiver<Health>) {
    let starting = async {
        let health = (&mut health).await;
        // A server that did not start ends its process, and this task with it.
        let Ok(health) = health else { return std::future::pending().await };
        while !health.is_ready() {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    };
    tokio::pin!(starting);
    let mut extend = tokio::time::interval(EXTEND_INTERVAL);
    loop {
        tokio::select! {
            () = &mut starting => break,
            _ = extend.tick() => {
                let more = u32::try_from(EXTEND_BY.as_micros()).unwrap_or(u32::MAX);
                send(&[NotifyState::ExtendTimeoutUsec(more), NotifyState::Status("starting")]);
            }
        }
    }
    send(&[NotifyState::Ready, NotifyState::Status("ready")]);
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut alive = tokio::time::interval(limit / 3);
    loop {
        alive.tick().await;
        let turn = tokio::spawn(async {});
        if turn.await.is_ok() {
            send(&[NotifyState::Watchdog]);
        }
    }
}

fn send(state: &[NotifyState<'_>]) {
    match sd_notify::notify(state) {
        // A full socket: systemd will hear the next one.
        Err(error) if error.kind() != ErrorKind::WouldBlock => {
            tracing::warn!(%error, "systemd cannot be told of this server");
        }
        _ => {}
    }
}
