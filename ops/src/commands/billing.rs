//! `billing`: what the two billing servers have in their books. Thin calls; their answers are printed as they are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use billing::description;
use billing::ledger::{CorrectionRequest, DeliveryNumber, PaymentRequest};
use billing::period::Period;
use common::api::billing::{BillingClient, Quote, Totals, Usage};
use common::client::encode;
use common::id::{ClientId, NodeId};
use common::name::ContentName;
use common::time::{Clock, UnixMillis};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::backup;
use super::replay::replay;
use super::usage::show_usage;
use crate::error::Failure;
use crate::output::{self, Align, OutputArgs, Table};
use crate::session::{Operator, OperatorArgs};

/// Which of the two servers is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fee {
    /// The fee for delivery
    Service,
    /// The fee for use
    Content,
}

impl Fee {
    const BOTH: [Self; 2] = [Self::Service, Self::Content];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Content => "content",
        }
    }

    fn client(self, session: &Operator) -> BillingClient {
        match self {
            Self::Service => session.service_billing(),
            Self::Content => session.content_billing(),
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct BooksArgs {
    /// One of the two servers; without this, both
    #[arg(long, value_enum)]
    fee: Option<Fee>,
    #[command(flatten)]
    operator: OperatorArgs,
}

impl BooksArgs {
    /// The servers to ask.
    fn connect(&self) -> Result<Vec<(Fee, BillingClient)>, Failure> {
        let session = self.operator.connect()?;
        let both = Fee::BOTH.into_iter().filter(|fee| self.fee.is_none_or(|only| only == *fee));
        Ok(both.map(|fee| (fee, fee.client(&session))).collect())
    }
}

/// Which way a bank file moves money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BankFile {
    /// To parties
    Payouts,
    /// From clients
    Debits,
}

impl BankFile {
    fn name(self) -> &'static str {
        match self {
            Self::Payouts => "payouts",
            Self::Debits => "debits",
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct FileArgs {
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    operator: OperatorArgs,
}

impl FileArgs {
    fn write(&self, bytes: &[u8]) -> Result<(), Failure> {
        write_out(self.output.as_deref(), bytes)
    }
}

#[derive(Debug, clap::Subcommand)]
pub enum BillingCommand {
    /// Show a client's booked deliveries and charges of a month
    Usage {
        client: ClientId,
        /// The month, by default the present one in the tariff's zone
        #[arg(long, value_name = "YYYY-MM")]
        period: Option<String>,
        #[command(flatten)]
        books: BooksArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Print a client's invoices of a month as JSON; while the month is open, the draft
    Invoice {
        client: ClientId,
        /// The month, by default the present one in Tokyo
        #[arg(long, value_name = "YYYY-MM")]
        period: Option<String>,
        #[command(flatten)]
        books: BooksArgs,
    },
    /// Write an issued invoice or credit note, in the form that its name ends in
    Document {
        /// NUMBER.json, NUMBER.html, NUMBER.csv or NUMBER.xml (UBL 2.1)
        #[arg(value_name = "NUMBER.FORM")]
        name: String,
        #[command(flatten)]
        file: FileArgs,
    },
    /// Show what a party earned in a month and what of it is paid out; while the month is open, as it would be now
    Statement {
        /// site:NAME, provider:CLIENT, origin:NAME, mobile:NAME, search, billing:service or billing:content
        party: String,
        /// The month, by default the present one in Tokyo
        #[arg(long, value_name = "YYYY-MM")]
        period: Option<String>,
        /// One of the forms html and csv, of one server, instead of JSON
        #[arg(long, requires = "fee")]
        form: Option<String>,
        #[command(flatten)]
        books: BooksArgs,
    },
    /// Show what a delivery of a content would be charged now
    Quote {
        #[arg(value_name = "BUCKET/KEY")]
        content: ContentName,
        #[arg(long = "as", value_name = "CLIENT")]
        client: ClientId,
        /// Served away from the client's home
        #[arg(long)]
        away: bool,
        #[command(flatten)]
        books: BooksArgs,
    },
    /// Take charges back: by reversal or, if they were invoiced, with a credit note
    Correct {
        /// The node whose records they are, SITE.NODE
        node: NodeId,
        epoch: u64,
        /// Numbers of the records
        #[arg(required = true)]
        seq: Vec<u64>,
        /// For the books and the client
        #[arg(long)]
        reason: String,
        #[arg(long, value_enum)]
        fee: Fee,
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Book money that came in for an invoice; the same reference again changes nothing
    Pay {
        invoice: String,
        /// Whole minor units: yen, cents
        minor: i64,
        /// The bank's, or your own
        reference: String,
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Write the bank file of a closed month
    Export {
        #[arg(value_enum)]
        what: BankFile,
        #[arg(value_name = "YYYY-MM")]
        period: String,
        /// zengin (Japan) or sepa (euro area)
        #[arg(long)]
        scheme: String,
        /// Day of the payments
        #[arg(long, value_name = "YYYY-MM-DD")]
        date: String,
        /// Leave out payouts to parties without an account, instead of refusing
        #[arg(long)]
        skip_missing: bool,
        #[arg(long, value_enum)]
        fee: Fee,
        #[command(flatten)]
        file: FileArgs,
    },
    /// Book what a bank's result file of debits (kind 91) says was paid
    Import {
        #[arg(value_name = "FILE")]
        results: PathBuf,
        #[arg(long, value_enum)]
        fee: Fee,
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Compare the nodes' logs and both servers' books, and say where they part
    Reconcile {
        /// The month, by default the present one in Tokyo
        #[arg(value_name = "YYYY-MM")]
        period: Option<String>,
        #[command(flatten)]
        books: BooksArgs,
    },
    /// Book a file of delivery records into two empty ledgers and print what they say
    Replay {
        /// One record a line, as JSON
        file: PathBuf,
        /// Tariffs, splits and parties (TOML); by default those of the demonstration
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Folder that the ledgers service.db and content.db are made in; without it they are not kept
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
        /// Close this month afterwards; may be repeated, in order
        #[arg(long, value_name = "YYYY-MM")]
        close: Vec<Period>,
    },
    /// Copy the books of one fee, also while their server runs; with PostgreSQL use pg_dump
    Backup(backup::BackupArgs),
    /// Check a backup and put it into a data folder without books, for the server to be started on
    Restore(backup::RestoreArgs),
    /// Have the servers recompute everything and compare it with their books
    Verify {
        #[command(flatten)]
        books: BooksArgs,
    },
    /// Close a month: its invoices are issued and nothing more is booked into it
    Close {
        #[arg(value_name = "YYYY-MM")]
        period: String,
        /// Show what would happen
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        books: BooksArgs,
    },
    /// Show what is booked in all
    Totals {
        #[command(flatten)]
        books: BooksArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Print the bearer token that reads everything at both servers and changes nothing
    AuditorToken {
        #[command(flatten)]
        operator: OperatorArgs,
    },
    /// Print the description of the servers' API, OpenAPI 3.1
    Openapi,
}

pub async fn billing(command: BillingCommand) -> Result<(), Failure> {
    match command {
        BillingCommand::Usage { client, period, books, output } => {
            let mut usages = Vec::new();
            for (fee, server) in books.connect()? {
                usages.push((fee, server.usage(&client, period.as_deref()).await?));
            }
            show_usages(&usages, output)
        }
        BillingCommand::Invoice { client, period, books } => {
            let period = encode(&period.unwrap_or_else(this_month)).to_string();
            let mut answers = Vec::new();
            for (fee, server) in books.connect()? {
                answers.push((fee, invoices(&server, &client, &period).await?));
            }
            output::json(&by_fee(&answers))
        }
        BillingCommand::Document { name, file } => {
            let session = file.operator.connect()?;
            file.write(
                &of_number(&name).client(&session).file(&format!("/v1/invoices/{}", encode(&name))).await?,
            )
        }
        BillingCommand::Statement { party, period, form, books } => {
            let period = period.unwrap_or_else(this_month);
            let path = format!("/v1/statements/{}/{}", encode(&party), encode(&period));
            match form {
                None => output::json(&by_fee(&get_each(&books, &format!("{path}.json")).await?)),
                Some(form) => {
                    for (_, server) in books.connect()? {
                        write_out(None, &server.file(&format!("{path}.{}", encode(&form))).await?)?;
                    }
                    Ok(())
                }
            }
        }
        BillingCommand::Quote { content, client, away, books } => {
            let known = books.operator.connect()?.search().lookup(&content).await?;
            let mut quotes: Vec<(Fee, Quote)> = Vec::new();
            for (fee, server) in books.connect()? {
                quotes.push((fee, server.quote(&client, &content, &known.provider, known.len, away).await?));
            }
            output::json(&by_fee(&quotes))
        }
        BillingCommand::Correct { node, epoch, seq, reason, fee, operator } => {
            let deliveries =
                seq.into_iter().map(|seq| DeliveryNumber { node: node.clone(), epoch, seq }).collect();
            let request = CorrectionRequest { deliveries, reason };
            let answer: Value = fee.client(&operator.connect()?).post("/v1/corrections", &request).await?;
            output::json(&answer)
        }
        BillingCommand::Pay { invoice, minor, reference, operator } => {
            let server = of_number(&invoice).client(&operator.connect()?);
            let request = PaymentRequest { invoice, minor, reference };
            let answer: Value = server.post("/v1/payments", &request).await?;
            output::json(&answer)
        }
        BillingCommand::Export { what, period, scheme, date, skip_missing, fee, file } => {
            let server = fee.client(&file.operator.connect()?);
            let path = format!(
                "/v1/exports/{}/{}?scheme={}&date={}&skip_missing={skip_missing}",
                encode(&period),
                what.name(),
                encode(&scheme),
                encode(&date)
            );
            file.write(&server.file(&path).await?)
        }
        BillingCommand::Import { results, fee, operator } => {
            let bytes = std::fs::read(&results).map_err(|e| Failure::file("reading", &results, &e))?;
            let server = fee.client(&operator.connect()?);
            let answer: Value = server.post_file("/v1/imports/debit-results", bytes.into()).await?;
            output::json(&answer)
        }
        BillingCommand::Reconcile { period, books } => {
            let period = period.unwrap_or_else(this_month);
            let answers = get_each(&books, &format!("/v1/reconciliation/{}", encode(&period))).await?;
            output::json(&by_fee(&answers))?;
            in_order(&answers, "differ from the nodes' logs or from each other, or somebody did not answer")
        }
        BillingCommand::Replay { file, config, data_dir, close } => {
            replay(&file, config.as_deref(), data_dir.as_deref(), &close).await
        }
        BillingCommand::Backup(args) => backup::backup(args).await,
        BillingCommand::Restore(args) => backup::restore(args).await,
        BillingCommand::Verify { books } => verify(&books).await,
        BillingCommand::Close { period, dry_run, books } => {
            let query = if dry_run { "?dry_run=true" } else { "" };
            let path = format!("/v1/periods/{}/close{query}", encode(&period));
            let mut answers: Vec<(Fee, Value)> = Vec::new();
            for (fee, server) in books.connect()? {
                answers.push((fee, server.post(&path, &()).await?));
            }
            output::json(&by_fee(&answers))
        }
        BillingCommand::Totals { books, output } => {
            let mut totals = Vec::new();
            for (fee, server) in books.connect()? {
                totals.push((fee, server.totals().await?));
            }
            show_totals(&totals, output)
        }
        BillingCommand::AuditorToken { operator } => output::line(operator.secret()?.auditor_token()),
        BillingCommand::Openapi => output::json(&description()),
    }
}

/// The present month where tariffs are at home.
fn this_month() -> String {
    const TOKYO_AHEAD_MS: u64 = 9 * 3_600_000;
    let (year, month, _) = UnixMillis(Clock::System.now().0 + TOKYO_AHEAD_MS).civil();
    format!("{year:04}-{month:02}")
}

/// A client's invoices of a month, or its draft. Drafts come in pages by client name.
async fn invoices(server: &BillingClient, client: &ClientId, period: &str) -> Result<Vec<Value>, Failure> {
    let issued: Vec<Value> = server.get(&format!("/v1/invoices?client={client}&period={period}")).await?;
    if !issued.is_empty() {
        return Ok(issued);
    }
    let mut after = String::new();
    loop {
        let path = format!("/v1/periods/{period}/close?dry_run=true&after={after}");
        let Drafts { invoices } = server.post(&path, &()).await?;
        let name = |draft: &Value| draft["client"].as_str().map(str::to_owned);
        match invoices.last().and_then(name) {
            // Names ascend, and a page that does not go on ends the search.
            Some(last) if last > after && last.as_str() < client.as_str() => after = last,
            _ => {
                return Ok(invoices
                    .into_iter()
                    .filter(|d| name(d).as_deref() == Some(client.as_str()))
                    .collect());
            }
        }
    }
}

/// The part of a close report that is looked into.
#[derive(Deserialize)]
struct Drafts {
    invoices: Vec<Value>,
}

async fn get_each(books: &BooksArgs, path: &str) -> Result<Vec<(Fee, Value)>, Failure> {
    let mut answers = Vec::new();
    for (fee, server) in books.connect()? {
        answers.push((fee, server.get(path).await?));
    }
    Ok(answers)
}

/// `{"service": …, "content": …}`
fn by_fee<T: Serialize>(answers: &[(Fee, T)]) -> BTreeMap<&'static str, &T> {
    answers.iter().map(|(fee, answer)| (fee.name(), answer)).collect()
}

fn show_usages(usages: &[(Fee, Usage)], args: OutputArgs) -> Result<(), Failure> {
    if args.json {
        return output::json(&by_fee(usages));
    }
    for (fee, usage) in usages {
        output::text_block(&format!("{} fee of {}\n{}", fee.name(), usage.client, show_usage(usage)))?;
    }
    Ok(())
}

fn show_totals(totals: &[(Fee, Totals)], args: OutputArgs) -> Result<(), Failure> {
    if args.json {
        return output::json(&by_fee(totals));
    }
    let mut table = Table::new(&[
        ("fee", Align::Left),
        ("records", Align::Right),
        ("journals", Align::Right),
        ("exceptions", Align::Right),
        ("imbalance", Align::Right),
        ("records by status", Align::Left),
    ]);
    for (fee, sum) in totals {
        let each: Vec<String> =
            sum.records.iter().map(|(status, count)| format!("{count} {status}")).collect();
        table.row(vec![
            fee.name().to_owned(),
            sum.records.values().sum::<u64>().to_string(),
            sum.journals.to_string(),
            sum.exceptions.to_string(),
            sum.imbalance_micros.to_string(),
            each.join(", "),
        ]);
    }
    output::text_block(&table.render(0))
}

/// Prints both answers; fails when one of the servers found a fault in its books.
async fn verify(books: &BooksArgs) -> Result<(), Failure> {
    let answers = get_each(books, "/v1/verify").await?;
    output::json(&by_fee(&answers))?;
    in_order(&answers, "are not in order")
}

/// Fails when one of the answers does not say `ok`.
fn in_order(answers: &[(Fee, Value)], fault: &str) -> Result<(), Failure> {
    let faulty: Vec<&str> =
        answers.iter().filter(|(_, a)| a["ok"] != Value::Bool(true)).map(|(fee, _)| fee.name()).collect();
    if faulty.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("the books of the {} fee {fault}", faulty.join(" and "))))
}

/// The server that a document's number belongs to.
fn of_number(number: &str) -> Fee {
    if number.starts_with('C') { Fee::Content } else { Fee::Service }
}

/// Writes to a file or, without one, to standard output.
fn write_out(path: Option<&Path>, bytes: &[u8]) -> Result<(), Failure> {
    use std::io::Write;
    match path {
        Some(path) => std::fs::write(path, bytes).map_err(|e| Failure::file("writing", path, &e)),
        None => std::io::stdout()
            .write_all(bytes)
            .map_err(|e| Failure::file("writing to", Path::new("standard output"), &e)),
    }
}
