//! `billing`: what the two billing servers have in their books. Thin calls; their answers are printed as they are.

use std::collections::BTreeMap;

use common::api::billing::{BillingClient, Totals, Usage};
use common::client::encode;
use common::id::ClientId;
use common::time::{Clock, UnixMillis};
use serde::{Deserialize, Serialize};
use serde_json::Value;

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

    fn name(self) -> &'static str {
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

#[derive(Debug, clap::Subcommand)]
pub enum BillingCommand {
    /// Show a client's booked deliveries and charges of a month
    Usage {
        client: ClientId,
        /// The month, by default the present one in Tokyo
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
}

pub async fn billing(command: BillingCommand) -> Result<(), Failure> {
    match command {
        BillingCommand::Usage { client, period, books, output } => {
            let period = period.unwrap_or_else(this_month);
            let mut usages = Vec::new();
            for (fee, server) in books.connect()? {
                usages.push((fee, server.usage(&client, &period).await?));
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
    let faulty: Vec<&str> =
        answers.iter().filter(|(_, a)| a["ok"] != Value::Bool(true)).map(|(fee, _)| fee.name()).collect();
    if faulty.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format!("the books of the {} fee are not in order", faulty.join(" and "))))
}
