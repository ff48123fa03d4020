//! An object store in memory, for tests, that fails at a chosen write or holds writes back.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::Semaphore;

/// What becomes of the chosen write; it fails in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is never carried out.
    Lost,
    /// It is carried out.
    Unanswered,
    /// It is carried out when [`Flaky::carry_out_late`] says so.
    Late,
}

#[derive(Clone)]
enum Write {
    Put(Path, PutPayload),
    Delete(Path),
}

#[derive(Default)]
struct Plan {
    writes: usize,
    /// The write, counted from 0, at which it strikes.
    strike: Option<(usize, Fate)>,
    /// Whether everything fails from then on.
    is_fatal: bool,
    dead: bool,
    late: Vec<Write>,
}

#[derive(Clone)]
pub struct Flaky {
    pub inner: Arc<InMemory>,
    plan: Arc<Mutex<Plan>>,
    /// Permits for writes; without one they wait.
    pub gate: Arc<Semaphore>,
    arrived: Arc<AtomicUsize>,
}

impl Flaky {
    pub fn new(inner: Arc<InMemory>) -> Arc<Self> {
        let gate = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        Arc::new(Self { inner, plan: Arc::default(), gate, arrived: Arc::default() })
    }

    /// Fails at the write of this number from now on, and at everything after it if that is fatal.
    pub fn strike(&self, at: usize, fate: Fate, is_fatal: bool) {
        let mut plan = self.plan.lock().unwrap();
        plan.strike = Some((plan.writes + at, fate));
        plan.is_fatal = is_fatal;
    }

    pub fn writes(&self) -> usize {
        self.plan.lock().unwrap().writes
    }

    /// Writes that came to the gate.
    pub fn arrived(&self) -> usize {
        self.arrived.load(Ordering::SeqCst)
    }

    /// A large chunk that is among what may be carried out late.
    pub fn late_chunk(&self) -> Option<Path> {
        let plan = self.plan.lock().unwrap();
        plan.late.iter().find_map(|write| match write {
            Write::Put(path, _) if path.as_ref().starts_with("chunks/") => Some(path.clone()),
            _ => None,
        })
    }

    pub async fn carry_out_late(&self) {
        let late = std::mem::take(&mut self.plan.lock().unwrap().late);
        for write in late {
            carry_out(&self.inner, write).await.unwrap();
        }
    }

    async fn write(&self, write: Write) -> Result<()> {
        let Self { inner, plan, gate, arrived } = self;
        arrived.fetch_add(1, Ordering::SeqCst);
        gate.acquire().await.unwrap().forget();
        let fate = {
            let mut plan = plan.lock().unwrap();
            if plan.dead {
                return Err(failed());
            }
            let number = plan.writes;
            plan.writes += 1;
            let fate = plan.strike.filter(|(at, _)| *at == number).map(|(_, fate)| fate);
            plan.dead = fate.is_some() && plan.is_fatal;
            if fate == Some(Fate::Late) {
                plan.late.push(write.clone());
            }
            fate
        };
        match fate {
            None => carry_out(inner, write).await,
            Some(Fate::Unanswered) => carry_out(inner, write).await.and(Err(failed())),
            Some(Fate::Lost | Fate::Late) => Err(failed()),
        }
    }
}

async fn carry_out(inner: &InMemory, write: Write) -> Result<()> {
    match write {
        Write::Put(path, payload) => inner.put(&path, payload).await.map(drop),
        Write::Delete(path) => inner.delete(&path).await,
    }
}

fn failed() -> object_store::Error {
    object_store::Error::Generic { store: "flaky", source: "as planned".into() }
}

impl fmt::Debug for Flaky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flaky")
    }
}

impl fmt::Display for Flaky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flaky")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Flaky {
    async fn put_opts(&self, path: &Path, payload: PutPayload, _: PutOptions) -> Result<PutResult> {
        self.write(Write::Put(path.clone(), payload)).await?;
        Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        if self.plan.lock().unwrap().dead {
            return Err(failed());
        }
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        paths
            .then(move |path| {
                let this = this.clone();
                async move {
                    let path = path?;
                    this.write(Write::Delete(path.clone())).await?;
                    Ok(path)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
