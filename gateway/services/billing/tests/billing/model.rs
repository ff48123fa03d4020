//! Whatever happens, in whatever order: the books are what a slow and obvious model says.

use std::collections::{BTreeMap, BTreeSet};

use billing::ledger::{CloseRequest, CorrectionRequest, DeliveryNumber};
use billing::{Fee, demo_tariffs};
use common::api::billing::BatchAnswer;
use common::record::{ChainedRecord, DeliveryClass, DeliveryPath, DeliveryRecord, DeliveryStatus, Source};
use common::time::UnixMillis;
use proptest::prelude::*;

use crate::fixtures::{Books, OCTOBER, chain, record};

const MONTH_MS: u64 = 30 * 86_400_000;
/// October, November and December; the clock says December.
const PERIODS: [&str; 3] = ["2026-10", "2026-11", "2026-12"];
const NOW: usize = 2;

#[derive(Debug, Clone)]
enum Step {
    /// The node sends records from a place in its log, perhaps again, perhaps too far.
    Send {
        from: prop::sample::Index,
        len: usize,
    },
    /// The server stops and starts.
    Reopen,
    Close {
        month: usize,
    },
    /// A charge is taken back, if it can be.
    Correct {
        record: prop::sample::Index,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<prop::sample::Index>(), 1usize..25).prop_map(|(from, len)| Step::Send { from, len }),
        1 => Just(Step::Reopen),
        1 => (0usize..2).prop_map(|month| Step::Close { month }),
        3 => any::<prop::sample::Index>().prop_map(|record| Step::Correct { record }),
    ]
}

/// A record of some month, with the kinds varied by `n`.
fn delivery(n: u64, month: u64) -> DeliveryRecord {
    let begin = UnixMillis(OCTOBER - 10 * 86_400_000 + month * MONTH_MS + n);
    DeliveryRecord { begin, end: begin, ..record(n) }
}

fn month_of(record: &DeliveryRecord) -> usize {
    usize::try_from((record.begin.0 + 10 * 86_400_000 - OCTOBER) / MONTH_MS).unwrap()
}

/// A content fee of 10.4 yen, or 0.7, and who gets what of it, in millionths. Everything comes out even.
fn charge(record: &DeliveryRecord) -> Option<(i64, BTreeMap<String, i64>)> {
    let is_billed = matches!(record.status, DeliveryStatus::Complete | DeliveryStatus::Partial);
    if !is_billed || record.client == record.provider {
        return None;
    }
    let micros = if record.class == DeliveryClass::Purchase { 10_400_000 } else { 700_000 };
    let mut shares: BTreeMap<String, i64> = BTreeMap::new();
    let mut left = 10_000;
    let mut give = |party: String, basis_points: i64| {
        *shares.entry(party).or_default() += micros * basis_points / 10_000;
        left -= basis_points;
        left
    };
    give("billing:content".into(), 500);
    let mut rest;
    match (&record.path, &record.source) {
        (DeliveryPath::Hit, _) => rest = give(format!("site:{}", record.home), 1_000),
        (_, source) => {
            give(format!("site:{}", record.home), 800);
            give("search".into(), 200);
            let source = match source {
                Some(Source::Site(site)) => format!("site:{site}"),
                Some(Source::Origin(origin)) => format!("origin:{origin}"),
                None => panic!("collected from nowhere"),
            };
            rest = give(source, 400);
        }
    }
    if let Some(site) = &record.surrogate {
        rest = give(format!("site:{site}"), 300);
    }
    give(format!("provider:{}", record.provider), rest);
    Some((micros, shares))
}

fn half_up(micros: i64) -> i64 {
    (micros + 500_000).div_euclid(1_000_000)
}

/// A charge in the books.
struct Charge {
    client: String,
    micros: i64,
    shares: BTreeMap<String, i64>,
    month: usize,
    invoice: Option<usize>,
    corrected: bool,
}

/// What was issued to a client, and what is credited of it.
struct Invoice {
    charges: i64,
    credited: i64,
}

#[derive(Default)]
struct Model {
    booked: usize,
    /// Months before this one are closed.
    open: usize,
    charges: BTreeMap<usize, Charge>,
    invoices: Vec<Invoice>,
    accounts: BTreeMap<String, i64>,
    earned: BTreeMap<(String, usize), i64>,
    carried: BTreeMap<String, i64>,
}

impl Model {
    fn add(&mut self, account: &str, micros: i64) {
        *self.accounts.entry(account.to_owned()).or_default() += micros;
    }

    fn share(&mut self, party: &str, month: usize, micros: i64) {
        self.add(&format!("payable:{party}"), -micros);
        *self.earned.entry((party.to_owned(), month)).or_default() += micros;
    }

    fn book(&mut self, records: &[ChainedRecord]) {
        for link in &records[self.booked..] {
            if let Some((micros, shares)) = charge(&link.record) {
                let (client, month) = (link.record.client.to_string(), month_of(&link.record).max(self.open));
                self.add(&format!("unbilled:{client}"), micros);
                for (party, micros) in &shares {
                    self.share(party, month, *micros);
                }
                let charge = Charge { client, micros, shares, month, invoice: None, corrected: false };
                self.charges.insert(self.booked, charge);
            }
            self.booked += 1;
        }
    }

    fn close(&mut self, month: usize) {
        if month < self.open {
            return;
        }
        let clients: BTreeSet<String> = self.charges.values().map(|charge| charge.client.clone()).collect();
        for client in clients {
            let number = self.invoices.len();
            let mut sum = 0;
            let mut is_any = false;
            let its = self.charges.values_mut().filter(|charge| charge.client == client);
            for charge in its.filter(|c| c.month <= month && c.invoice.is_none() && !c.corrected) {
                charge.invoice = Some(number);
                sum += charge.micros;
                is_any = true;
            }
            if is_any {
                self.invoices.push(Invoice { charges: sum, credited: 0 });
                let (net, tax) = (half_up(sum), half_up(sum) / 10);
                self.settle(&client, sum, net, tax, 1);
            }
        }
        let parties: BTreeSet<String> = self.earned.keys().map(|(party, _)| party.clone()).collect();
        for party in parties {
            let months = (self.open..=month).filter_map(|m| self.earned.get(&(party.clone(), m)));
            let earned: Vec<i64> = months.copied().collect();
            if earned.is_empty() {
                continue;
            }
            let balance = self.carried.get(&party).copied().unwrap_or(0) + earned.iter().sum::<i64>();
            let paid = balance.div_euclid(1_000_000).max(0) * 1_000_000;
            self.carried.insert(party.clone(), balance - paid);
            self.add(&format!("payable:{party}"), paid);
            self.add("bank", -paid);
        }
        self.open = month + 1;
    }

    fn settle(&mut self, client: &str, charges: i64, net: i64, tax: i64, sign: i64) {
        self.add(&format!("receivable:{client}"), sign * (net + tax) * 1_000_000);
        self.add(&format!("unbilled:{client}"), -sign * charges);
        self.add("tax", -sign * tax * 1_000_000);
        self.add("rounding", -sign * (net * 1_000_000 - charges));
    }

    fn correct(&mut self, index: usize) -> bool {
        let Some(charge) = self.charges.get_mut(&index).filter(|charge| !charge.corrected) else {
            return false;
        };
        charge.corrected = true;
        let (client, micros, shares) = (charge.client.clone(), charge.micros, charge.shares.clone());
        let (month, invoice) = (charge.month, charge.invoice);
        self.add(&format!("unbilled:{client}"), -micros);
        let month = if invoice.is_some() { NOW.max(self.open) } else { month };
        for (party, micros) in shares {
            self.share(&party, month, -micros);
        }
        if let Some(number) = invoice {
            let invoice = &mut self.invoices[number];
            let before = half_up(invoice.charges - invoice.credited);
            invoice.credited += micros;
            let after = half_up(invoice.charges - invoice.credited);
            self.settle(&client, micros, before - after, before / 10 - after / 10, -1);
        }
        true
    }

    fn expected(&self) -> BTreeMap<String, i64> {
        self.accounts.iter().filter(|(_, micros)| **micros != 0).map(|(a, m)| (a.clone(), *m)).collect()
    }
}

async fn accounts(books: &Books) -> BTreeMap<String, i64> {
    let all = books.ledger.accounts("", 1000).await.unwrap();
    let shown = all.into_iter().filter(|account| account.balance_micros != 0);
    shown.map(|account| (account.account, account.balance_micros)).collect()
}

async fn live(records: &[ChainedRecord], steps: Vec<Step>) {
    let mut terms = demo_tariffs();
    terms.content.tariffs[0].purchase = "10.4".into();
    terms.content.tariffs[0].reference = "0.7".into();
    let mut books = Books::with_terms(Fee::Content, &terms).await;
    let mut model = Model::default();
    for step in steps {
        match &step {
            Step::Send { from, len } => {
                let from = from.index(records.len());
                let to = (from + len).min(records.len());
                let answer = books.book("tokyo.n1", 1, &records[from..to]).await.answer;
                if from > model.booked {
                    assert_eq!(answer, BatchAnswer::Gap { expected: model.booked as u64 + 1 });
                    continue;
                }
                if to > model.booked {
                    model.book(&records[..to]);
                }
                assert_eq!(answer, BatchAnswer::Booked { through: model.booked as u64 });
            }
            Step::Reopen => books = books.reopen().await,
            Step::Close { month } => {
                let period = PERIODS[*month].parse().unwrap();
                let request = CloseRequest { period, dry_run: false, after: String::new() };
                books.ledger.close(&request).await.unwrap();
                model.close(*month);
            }
            Step::Correct { record } => {
                let index = record.index(records.len());
                let node = "tokyo.n1".parse().unwrap();
                let deliveries = vec![DeliveryNumber { node, epoch: 1, seq: index as u64 + 1 }];
                let request = CorrectionRequest { deliveries, reason: "as the model says".into() };
                let corrected = books.ledger.correct(request, None).await;
                assert_eq!(corrected.is_ok(), model.correct(index), "{corrected:?}");
            }
        }
        assert_eq!(accounts(&books).await, model.expected(), "after {step:?}");
    }
    books.assert_verifies().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_books_are_what_the_model_says(
        months in prop::collection::vec(0u64..3, 80),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let records = months.into_iter().enumerate().map(|(n, month)| delivery(n as u64, month));
        let records = chain("tokyo.n1", 1, records);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(live(&records, steps));
    }
}
