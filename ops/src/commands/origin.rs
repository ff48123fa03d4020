//! `origin add|list|remove|rescan|status`: the sources of the origin, and how far they are registered.

use common::api::origin::{OriginClient, OriginStatus, Rescan, Source, SourceState, SourceStatus};
use common::config::show_bytes;
use common::id::{BucketName, ClientId};
use common::time::UnixMillis;

use crate::error::Failure;
use crate::output::{self, Align, OutputArgs, Table};
use crate::session::OperatorArgs;

#[derive(Debug, Clone, clap::Subcommand)]
pub enum OriginCommand {
    /// Register a folder or a bucket of an object store as a source; what it holds appears in a bucket of its own
    Add {
        /// dir:/folder, or s3://bucket/prefix with, after a ?, endpoint=URL, region=R, anonymous=true, credentials=FILE,
        /// profile=NAME, style=virtual; the origin opens files and folders on its own machine
        url: String,
        /// Bucket that the contents appear in
        #[arg(long)]
        bucket: BucketName,
        /// The client that provides, and is paid for, the contents
        #[arg(long, value_name = "CLIENT")]
        provider: ClientId,
        /// Most parts that are read from the source at a time
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        reads: Option<u32>,
        #[command(flatten)]
        operator: OperatorArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List the sources
    List {
        #[command(flatten)]
        operator: OperatorArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Withdraw all contents of a bucket's source and forget it; sites that hold them keep them
    Remove {
        bucket: BucketName,
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Look at a source now
    Rescan {
        bucket: BucketName,
        /// What is not found is gone, however much it is
        #[arg(long)]
        withdraw: bool,
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Show how far the sources are registered, and what is wrong with them; exits with 1 if something is
    Status {
        #[command(flatten)]
        operator: OperatorArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
}

pub async fn origin(command: OriginCommand) -> Result<(), Failure> {
    match command {
        OriginCommand::Add { url, bucket, provider, reads, operator, output } => {
            let source = Source { bucket, provider, url, read_concurrency: reads };
            let source = connect(&operator)?.add(&source).await?;
            if output.json {
                return output::json(&source);
            }
            output::line(&format!(
                "bucket {} of client {} from {}; `dozo origin status` shows how far it is",
                source.bucket, source.provider, source.url
            ))
        }
        OriginCommand::List { operator, output } => {
            let sources = connect(&operator)?.status().await?.sources;
            let sources: Vec<Source> = sources.into_iter().map(|status| status.source).collect();
            if output.json {
                return output::json(&sources);
            }
            output::text_block(&list(&sources).render(0))
        }
        OriginCommand::Remove { bucket, operator } => {
            connect(&operator)?.remove(&bucket).await?;
            output::line(&format!("the source of bucket {bucket} is being removed"))
        }
        OriginCommand::Rescan { bucket, withdraw, operator } => {
            connect(&operator)?.rescan(&bucket, Rescan { withdraw }).await?;
            output::line(&format!("the source of bucket {bucket} is looked at now"))
        }
        OriginCommand::Status { operator, output } => {
            let status = connect(&operator)?.status().await?;
            if output.json {
                output::json(&status)?;
            } else {
                output::text_block(&show(&status))?;
            }
            verdict(&status)
        }
    }
}

fn connect(operator: &OperatorArgs) -> Result<OriginClient, Failure> {
    let session = operator.connect()?;
    Ok(OriginClient::new(session.server.clone(), &session.endpoints.origin.http))
}

fn list(sources: &[Source]) -> Table {
    let mut table = Table::new(&[
        ("bucket", Align::Left),
        ("provider", Align::Left),
        ("reads", Align::Right),
        ("url", Align::Left),
    ]);
    for Source { bucket, provider, url, read_concurrency } in sources {
        let reads = read_concurrency.map_or_else(|| "-".to_owned(), |n| n.to_string());
        table.row(vec![bucket.to_string(), provider.to_string(), reads, url.clone()]);
    }
    table
}

fn show(status: &OriginStatus) -> String {
    let mut table = Table::new(&[
        ("bucket", Align::Left),
        ("state", Align::Left),
        ("changes", Align::Left),
        ("contents", Align::Right),
        ("bytes", Align::Right),
        ("listed", Align::Right),
        ("read", Align::Right),
        ("left out", Align::Right),
        ("unreadable", Align::Right),
        ("reading", Align::Right),
        ("last scan", Align::Left),
    ]);
    for source in &status.sources {
        table.row(cells(source));
    }
    let mut text = table.render(0);
    for source in &status.sources {
        if let Some(problem) = &source.problem {
            text.push_str(&format!("\n{}: {problem}\n", source.source.bucket));
        }
    }
    if status.announcements_pending > 0 {
        text.push_str(&format!("\n{} announcements wait for search\n", status.announcements_pending));
    }
    text
}

fn cells(status: &SourceStatus) -> Vec<String> {
    let scan = &status.scan;
    let reading = match status.reads_waiting {
        0 => status.reads_inflight.to_string(),
        waiting => format!("{} (+{waiting})", status.reads_inflight),
    };
    let ended = |time: UnixMillis| time.to_string();
    vec![
        status.source.bucket.to_string(),
        status.state.as_str().to_owned(),
        if status.watched { "watched" } else { "by scan" }.to_owned(),
        status.contents.to_string(),
        show_bytes(status.bytes),
        scan.listed.to_string(),
        format!("{} ({})", scan.read, show_bytes(scan.read_bytes)),
        scan.left_out.to_string(),
        scan.unreadable.to_string(),
        reading,
        scan.ended.map_or_else(|| "-".to_owned(), ended),
    ]
}

fn verdict(status: &OriginStatus) -> Result<(), Failure> {
    let is_wrong = |source: &&SourceStatus| {
        matches!(source.state, SourceState::Failing | SourceState::Closed) || source.held.is_some()
    };
    let wrong: Vec<&str> = status.sources.iter().filter(is_wrong).map(|s| s.source.bucket.as_str()).collect();
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("not all is well with the source of {}", wrong.join(", ")))
        .with_next_step("`dozo origin rescan BUCKET` looks again at once"))
}
