//! Carries out events at their times, on a thread of its own; whatever it paused it lets go on at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::api::search::NodeAction;
use common::cluster::ClusterMap;
use futures_util::future::join_all;
use tokio::sync::watch;

use super::subject::{CommandLine, has_ended, signal};
use super::{Action, Deed, EventError, Happened, Planned};
use crate::operator::Operator;
use crate::process::listening;
use crate::progress::Progress;
use crate::target::{Control, Target, Watched};

const POLL_EVERY: Duration = Duration::from_millis(20);

/// Events whose subjects were found.
pub struct Crew {
    planned: Vec<Planned>,
    place: Place,
}

/// What the events are done to.
#[derive(Clone)]
struct Place {
    watched: Vec<Watched>,
    control: Option<Control>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// By server, as long as it has not been killed.
    pids: BTreeMap<String, u32>,
    lines: BTreeMap<String, CommandLine>,
    paused: BTreeSet<u32>,
    /// Started here: waited for, so that they leave nothing in the table of processes.
    started: Vec<Child>,
}

/// The crew at work. When dropped it ends its work too, but tells nobody.
pub struct AtWork {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<Vec<(Instant, Happened)>>>,
    place: Place,
}

impl Crew {
    /// Finds what the events are to be done to, so that what cannot be is told before the load begins.
    ///
    /// # Errors
    /// A server is not there, not on this machine, or shares its process with others; or the load, which lasts `end`
    /// after the warm-up, is over before an event's time.
    pub fn assemble(planned: &[Planned], target: &Target, end: Duration) -> Result<Self, EventError> {
        if let Some(late) = planned.iter().find(|event| event.at >= end) {
            return Err(EventError::Late { event: late.text.clone(), at: late.at, end });
        }
        let place =
            Place { watched: target.watched.clone(), control: target.control.clone(), state: Arc::default() };
        let ports: Vec<u16> = place.watched.iter().map(|watched| watched.port).collect();
        let found = if planned.is_empty() { Default::default() } else { listening(&ports) };
        for event in planned {
            let name = match &event.action {
                Action::Run(_) => continue,
                Action::Drain { node } | Action::Undrain { node } => {
                    if place.control.is_none() {
                        return Err(EventError::NoControl { event: event.text.clone() });
                    }
                    place.server(node)?;
                    continue;
                }
                Action::Process { server, .. } => server,
            };
            let server = place.server(name)?;
            let pid = found.get(&server.port).copied();
            let pid = pid.ok_or(EventError::NoProcess { event: event.text.clone(), port: server.port })?;
            let others = place.watched.iter().filter(|other| other.server != server.server);
            let others: Vec<&str> = others
                .filter(|other| found.get(&other.port) == Some(&pid))
                .map(|other| other.server.as_str())
                .collect();
            if !others.is_empty() {
                let others = others.join(", ");
                return Err(EventError::Shared { event: event.text.clone(), pid, others });
            }
            let mut state = place.state();
            state.pids.insert(server.server.clone(), pid);
            // For the case that it ends before it is ended.
            state.lines.extend(CommandLine::of(pid).ok().map(|line| (server.server.clone(), line)));
        }
        Ok(Self { planned: planned.to_vec(), place })
    }

    /// Goes to work; `zero` is what the events' times count from. `progress` is told of each.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(self, zero: Instant, progress: Option<Arc<Progress>>) -> Result<AtWork, EventError> {
        let (stop, stopped) = watch::channel(false);
        let (planned, place) = (self.planned, self.place.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(EventError::Thread)?;
        let work = move || {
            let progress = progress.as_deref();
            let events = planned.iter().map(|event| place.carry_out(event, zero, progress, stopped.clone()));
            runtime.block_on(join_all(events)).into_iter().flatten().collect()
        };
        let thread = std::thread::Builder::new().name("events".into()).spawn(work);
        Ok(AtWork { stop, thread: Some(thread.map_err(EventError::Thread)?), place: self.place })
    }
}

impl AtWork {
    /// Ends the work and tells what happened, at times since `start`.
    pub fn dismiss(mut self, start: Instant) -> Vec<Happened> {
        let happened = match self.end() {
            Some(Ok(happened)) => happened,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Vec::new(),
        };
        let since = |at: Instant| at.saturating_duration_since(start).as_secs_f64();
        let mut happened: Vec<Happened> =
            happened.into_iter().map(|(at, event)| Happened { at_s: since(at), ..event }).collect();
        happened.sort_by(|one, other| one.at_s.total_cmp(&other.at_s));
        happened
    }

    fn end(&mut self) -> Option<std::thread::Result<Vec<(Instant, Happened)>>> {
        let thread = self.thread.take()?;
        // The receiver may be gone: then all is done.
        let _all_done = self.stop.send(true);
        let happened = thread.join();
        for pid in std::mem::take(&mut self.place.state().paused) {
            // It may have been killed meanwhile.
            let _is_gone = signal(pid, libc::SIGCONT);
        }
        Some(happened)
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        // A panic was told by its thread.
        let _told = self.end();
    }
}

impl Place {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A server by its whole name, or by its short one at the client's home site.
    fn server(&self, name: &str) -> Result<&Watched, EventError> {
        let home = self.control.as_ref().map(|control| format!("{}.{name}", control.site));
        let is = |watched: &&Watched| watched.server == name || Some(&watched.server) == home.as_ref();
        self.watched.iter().find(is).ok_or_else(|| {
            let known: Vec<&str> = self.watched.iter().map(|watched| watched.server.as_str()).collect();
            EventError::NoServer { name: name.to_owned(), known: known.join(", ") }
        })
    }

    /// `None`: the load ended before its time.
    async fn carry_out(
        &self,
        event: &Planned,
        zero: Instant,
        progress: Option<&Progress>,
        mut stopped: watch::Receiver<bool>,
    ) -> Option<(Instant, Happened)> {
        let is_over = async |stopped: &mut watch::Receiver<bool>| {
            // A sender that is gone has ended the work too.
            let _gone = stopped.wait_for(|stopped| *stopped).await;
        };
        tokio::select! {
            () = tokio::time::sleep_until((zero + event.at).into()) => {}
            () = is_over(&mut stopped) => return None,
        }
        let begin = Instant::now();
        let tell = |what: String| progress.iter().for_each(|progress| progress.note(what.clone()));
        tell(event.text.clone());
        let done = tokio::select! {
            done = self.act(&event.action) => Some(done),
            () = is_over(&mut stopped) => None,
        };
        let done_after_s = done.as_ref().is_some_and(Result::is_ok).then(|| begin.elapsed().as_secs_f64());
        let error = done.and_then(Result::err);
        if let Some(error) = &error {
            tell(format!("{} failed: {error}", event.text));
        }
        Some((begin, Happened { at_s: 0.0, what: event.text.clone(), done_after_s, error }))
    }

    async fn act(&self, action: &Action) -> Result<(), String> {
        match action {
            Action::Process { deed, server } => self.treat(*deed, server).await,
            Action::Drain { node } => self.change(node, NodeAction::Drain).await,
            Action::Undrain { node } => self.change(node, NodeAction::Undrain).await,
            Action::Run(command) => run(command).await,
        }
    }

    async fn treat(&self, deed: Deed, name: &str) -> Result<(), String> {
        let server = self.server(name).map_err(|error| error.to_string())?;
        let pid = self.state().pids.get(&server.server).copied().filter(|pid| !has_ended(*pid));
        let running = || pid.ok_or_else(|| format!("{name} does not run"));
        let sent =
            |pid: u32, number: i32| signal(pid, number).map_err(|error| format!("process {pid}: {error}"));
        match deed {
            Deed::Kill | Deed::Stop => {
                let pid = running()?;
                let line = CommandLine::of(pid).map_err(|error| format!("process {pid}: {error}"))?;
                self.state().lines.insert(server.server.clone(), line);
                sent(pid, if deed == Deed::Kill { libc::SIGKILL } else { libc::SIGTERM })?;
                self.state().pids.remove(&server.server);
                while !has_ended(pid) {
                    tokio::time::sleep(POLL_EVERY).await;
                }
            }
            Deed::Start => {
                if pid.is_some() {
                    return Err(format!("{name} runs already"));
                }
                let line = self.state().lines.get(&server.server).cloned();
                let line = line.ok_or_else(|| format!("it is not known how {name} was started"))?;
                let child = line.start().map_err(|error| error.to_string())?;
                let pid = child.id();
                {
                    let mut state = self.state();
                    state.pids.insert(server.server.clone(), pid);
                    state.started.push(child);
                }
                while !is_ready(server).await {
                    if has_ended(pid) {
                        return Err(format!("{name} was started and has ended again"));
                    }
                    tokio::time::sleep(POLL_EVERY).await;
                }
            }
            Deed::Pause => {
                let pid = running()?;
                self.state().paused.insert(pid);
                sent(pid, libc::SIGSTOP)?;
            }
            Deed::Resume => {
                let pid = running()?;
                sent(pid, libc::SIGCONT)?;
                self.state().paused.remove(&pid);
            }
        }
        Ok(())
    }

    async fn change(&self, node: &str, action: NodeAction) -> Result<(), String> {
        let control = self.control.as_ref().ok_or("nothing is known of the system but its gateway")?;
        let operator = Operator::new(&control.admin_token);
        let told = |error: &dyn std::error::Error| common::error::chain(error).to_string();
        let map: ClusterMap = operator
            .get(&format!("{}/v1/map?after=0&wait_ms=0", control.search))
            .await
            .map_err(|error| told(&error))?;
        let (site, name) = node.split_once('.').unwrap_or((&control.site, node));
        let sites = map.sites.iter().filter(|entry| entry.id.as_str() == site);
        let id = sites.flat_map(|entry| &entry.nodes).map(|entry| &entry.id).find(|id| id.name() == name);
        let id = id.ok_or_else(|| format!("the map has no node {name} at {site}"))?;
        let url = format!("{}/v1/nodes/{id}/{}", control.search, action.as_str());
        operator.post(&url, &serde_json::Value::Null).await.map_err(|error| told(&error))
    }
}

/// Whether a server that was started says that it is ready; without an admin listener, whether it listens.
async fn is_ready(server: &Watched) -> bool {
    match &server.admin {
        Some(admin) => {
            // Readiness is open to all, so no token is needed; a refusal is "not yet".
            let url = format!("{admin}/readyz");
            Operator::new("").answers(&url).await
        }
        None => tokio::net::TcpStream::connect(("127.0.0.1", server.port)).await.is_ok(),
    }
}

async fn run(command: &str) -> Result<(), String> {
    let output = tokio::process::Command::new("sh")
        .args(["-c", command])
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    Err(format!("{}: {last}", output.status))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn planned(at_ms: u64, text: &str) -> Planned {
        Planned { at: Duration::from_millis(at_ms), action: text.parse().unwrap(), text: text.into() }
    }

    fn state_of(pid: u32) -> String {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().find_map(|line| line.strip_prefix("State:\t")).unwrap()[..1].to_owned()
    }

    #[test]
    fn commands_run_at_their_times_and_failures_are_told() {
        let target = Target::at("http://127.0.0.1:9", "bob", "no token");
        let events =
            [planned(60, "run echo broken >&2; exit 3"), planned(0, "run true"), planned(60_000, "run true")];
        let crew = Crew::assemble(&events, &target, Duration::from_secs(3600)).unwrap();
        let start = Instant::now();
        let at_work = crew.start(start, None).unwrap();
        std::thread::sleep(Duration::from_millis(400));
        let happened = at_work.dismiss(start);
        let told: Vec<(&str, bool)> = happened.iter().map(|h| (h.what.as_str(), h.error.is_some())).collect();
        assert_eq!(told, [("run true", false), ("run echo broken >&2; exit 3", true)]);
        assert!(happened[0].done_after_s.is_some() && happened[1].at_s >= 0.06);
        let error = happened[1].error.as_deref().unwrap();
        assert!(error.contains("broken") && error.contains('3'), "{error}");
    }

    #[test]
    fn what_is_not_there_or_shares_its_process_is_refused_before_the_load() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", socket.local_addr().unwrap());
        let mut target = Target::at(&url, "bob", "no token");
        let refused = |target: &Target, text: &str| {
            Crew::assemble(&[planned(0, text)], target, Duration::from_secs(1)).err().unwrap()
        };
        let error = refused(&target, "node kill n9");
        assert!(matches!(&error, EventError::NoServer { known, .. } if known == "gateway"), "{error}");
        assert!(matches!(refused(&target, "drain n1"), EventError::NoControl { .. }));
        let late = Crew::assemble(&[planned(1000, "run true")], &target, Duration::from_secs(1));
        assert!(matches!(late.err().unwrap(), EventError::Late { .. }));
        target.watched.push(Watched { server: "tokyo.n1".into(), ..target.watched[0].clone() });
        let error = refused(&target, "server kill gateway");
        assert!(matches!(&error, EventError::Shared { others, .. } if others == "tokyo.n1"), "{error}");
        drop(socket);
        assert!(matches!(refused(&target, "server kill gateway"), EventError::NoProcess { .. }));
    }

    #[test]
    fn what_was_paused_goes_on_when_the_load_ends() {
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        let place = Place {
            watched: Target::at("http://127.0.0.1:9", "bob", "no token").watched,
            control: None,
            state: Arc::default(),
        };
        place.state().pids.insert("gateway".into(), pid);
        let crew = Crew { planned: vec![planned(0, "gateway pause gateway")], place };
        let start = Instant::now();
        let at_work = crew.start(start, None).unwrap();
        while state_of(pid) != "T" {
            assert!(start.elapsed() < Duration::from_secs(10), "it is not stopped");
            std::thread::sleep(Duration::from_millis(5));
        }
        let happened = at_work.dismiss(start);
        assert_eq!(happened[0].error, None);
        while state_of(pid) == "T" {
            assert!(start.elapsed() < Duration::from_secs(20), "it does not go on");
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
