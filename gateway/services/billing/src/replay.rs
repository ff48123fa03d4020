//! Replay: a file of delivery records booked into two empty ledgers, for audits and for checking the rules from outside.
//!
//! One record a line, as JSON:
//!
//! ```json
//! {"node":"tokyo.n1","epoch":1,"seq":1,"begin":1792000000000,"end":1792000000005,"client":"bob","content":"alice/song.wav","hash":"<64 hex>","provider":"alice","class":"purchase","path":"peer","home":"tokyo","source":"osaka","searched":true,"surrogate":null,"mobile_access":null,"delivery":"<32 hex>","status":"complete","bytes_total":1000,"bytes_sent":1000}
//! ```
//!
//! Times are milliseconds since 1970 (UTC), or texts as in RFC 3339. `source` is the name of a site (path `peer`) or of an
//! origin (path `origin`), or null. Lines may come in any order; each node's numbers must go from 1 without gaps in each
//! epoch. `searched`, `surrogate`, `mobile_access`, `source` and `epoch` may be left out. The same line again counts once.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::Path;
use std::time::Duration;

use common::api::billing::{BATCH_RECORDS_MAX, BatchAnswer, RecordBatch, Totals};
use common::hash::{ContentHash, RecordDigest};
use common::id::{ClientId, DeliveryId, InvalidId, NodeId, ServerName, SiteId};
use common::name::ContentName;
use common::record::{ChainedRecord, DeliveryClass, DeliveryPath, DeliveryRecord, DeliveryStatus, Source};
use common::server::StartError;
use common::time::{Clock, UnixMillis, days_from_civil};
use database::Location;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::chain::{CheckedBatch, MalformedBatch};
use crate::config::Fee;
use crate::ledger::{AccountView, CloseReport, CloseRequest, Ledger};
use crate::period::Period;
use crate::sql::LedgerError;
use crate::tariff::Terms;
use crate::verify::VerifyReport;

/// Why a file was not replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("the file cannot be read")]
    Read(#[from] std::io::Error),
    #[error("line {line}: {reason}")]
    Line { line: usize, reason: String },
    #[error(
        "line {line}: {node} has record {got} in epoch {epoch}, but the file lacks record {missing} before it"
    )]
    Gap { line: usize, node: NodeId, epoch: u64, got: u64, missing: u64 },
    #[error("line {line}: record {seq} of {node} in epoch {epoch} is also line {first}, with other facts")]
    Twice { line: usize, first: usize, node: NodeId, epoch: u64, seq: u64 },
    #[error("{place} of the terms")]
    Terms { place: String, source: LedgerError },
    #[error("the {fee} ledger is not empty; replay into a new folder")]
    NotEmpty { fee: Fee },
    #[error("a batch was refused: {0}")]
    Refused(String),
    #[error(transparent)]
    Batch(#[from] MalformedBatch),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// What one ledger says after a replay.
#[derive(Debug, Serialize)]
pub struct ReplayReport {
    pub totals: Totals,
    /// Records that could not be rated.
    pub exceptions: u64,
    pub accounts: Vec<AccountView>,
    pub closed: Vec<CloseReport>,
    pub verify: VerifyReport,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    node: NodeId,
    #[serde(default = "first_epoch")]
    epoch: u64,
    seq: u64,
    begin: Time,
    end: Time,
    client: ClientId,
    content: ContentName,
    hash: ContentHash,
    provider: ClientId,
    class: DeliveryClass,
    path: DeliveryPath,
    home: SiteId,
    #[serde(default)]
    source: Option<SourceText>,
    #[serde(default)]
    searched: bool,
    #[serde(default)]
    surrogate: Option<SiteId>,
    #[serde(default)]
    mobile_access: Option<ServerName>,
    delivery: DeliveryId,
    status: DeliveryStatus,
    bytes_total: u64,
    bytes_sent: u64,
}

fn first_epoch() -> u64 {
    1
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "the name of a site or an origin, {\"site\": NAME} or {\"origin\": NAME}")]
enum SourceText {
    Name(String),
    Of(Source),
}

/// A time that was written as a number or as a text.
#[derive(Deserialize)]
#[serde(try_from = "TimeText")]
struct Time(UnixMillis);

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "milliseconds since 1970, or a text as 2026-10-15T00:00:00.000Z or with +09:00"
)]
enum TimeText {
    Millis(u64),
    Text(String),
}

impl TryFrom<TimeText> for Time {
    type Error = String;
    fn try_from(text: TimeText) -> Result<Self, String> {
        match text {
            TimeText::Millis(millis) => Ok(Self(UnixMillis(millis))),
            TimeText::Text(text) => parse_time(&text)
                .map(Self)
                .ok_or_else(|| format!("{text:?} is not a time as 2026-10-15T00:00:00.000Z or with +09:00")),
        }
    }
}

/// A time as in RFC 3339; fractions beyond a millisecond are cut off.
fn parse_time(text: &str) -> Option<UnixMillis> {
    let number = |text: &str| {
        (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse::<i64>().ok())?
    };
    let (date, rest) = text.split_once(['T', 't', ' '])?;
    let mut date = date.splitn(3, '-').map(number);
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let zone_at = rest.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = rest.split_at(zone_at);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut clock = clock.splitn(3, ':').map(number);
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let millis = number(&format!("{fraction:0<3}").chars().take(3).collect::<String>())?;
    let offset_minutes = match zone {
        "Z" | "z" => 0,
        zone => {
            let (hours, minutes) = zone[1..].split_once(':')?;
            let minutes = number(hours)? * 60 + number(minutes)?;
            if zone.starts_with('-') { -minutes } else { minutes }
        }
    };
    let is_valid = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second < 61
        && year <= 9999;
    let minutes = (days_from_civil(year, month, day) * 24 + hour) * 60 + minute - offset_minutes;
    let time = u64::try_from((minutes * 60 + second) * 1000 + millis).ok();
    time.filter(|_| is_valid).map(UnixMillis)
}

impl Line {
    /// Reads a line; what is wrong is told with the field that it is in.
    fn read(text: &str) -> Result<Self, String> {
        let mut json = serde_json::Deserializer::from_str(text);
        let line: Self = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let field = error.path().to_string();
            // The line is known already, and not the one that is meant here.
            let reason = error.inner().to_string();
            let reason = reason.split(" at line ").next().unwrap_or(&reason);
            if field == "." { reason.to_owned() } else { format!("{field}: {reason}") }
        })?;
        json.end().map_err(|_| "there is more than one JSON object; write one record a line".to_owned())?;
        let number = |field, number: u64, least| match i64::try_from(number) {
            Ok(number) if number >= least => Ok(()),
            _ => Err(format!("{field}: {number} is not within {least} to 2^63 - 1")),
        };
        number("epoch", line.epoch, 0)?;
        number("seq", line.seq, 1)?;
        number("bytes_total", line.bytes_total, 0)?;
        number("bytes_sent", line.bytes_sent, 0)?;
        if line.end.0 < line.begin.0 {
            return Err(format!("end: {} is before the begin, {}", line.end.0, line.begin.0));
        }
        Ok(line)
    }

    fn record(self) -> Result<DeliveryRecord, String> {
        let named = |error: InvalidId| format!("source: {error}");
        let source = match (self.source, self.path) {
            (None, _) => None,
            (Some(SourceText::Of(source)), _) => Some(source),
            (Some(SourceText::Name(name)), DeliveryPath::Origin) => {
                Some(Source::Origin(ServerName::new(&name).map_err(named)?))
            }
            (Some(SourceText::Name(name)), _) => Some(Source::Site(SiteId::new(&name).map_err(named)?)),
        };
        Ok(DeliveryRecord {
            delivery: self.delivery,
            begin: self.begin.0,
            end: self.end.0,
            client: self.client,
            content: self.content,
            hash: self.hash,
            provider: self.provider,
            class: self.class,
            path: self.path,
            home: self.home,
            source,
            searched: self.searched,
            surrogate: self.surrogate,
            mobile_access: self.mobile_access,
            status: self.status,
            bytes_total: self.bytes_total,
            bytes_sent: self.bytes_sent,
        })
    }
}

/// The records of a file, as chains.
pub struct ReplayFile {
    chains: BTreeMap<(NodeId, u64), Vec<ChainedRecord>>,
}

impl ReplayFile {
    /// Reads and checks a whole file. A record that comes twice alike counts once.
    pub fn read(file: impl BufRead) -> Result<Self, ReplayError> {
        let mut by_number: BTreeMap<(NodeId, u64), BTreeMap<u64, (usize, DeliveryRecord)>> = BTreeMap::new();
        for (index, text) in file.lines().enumerate() {
            let (text, line) = (text?, index + 1);
            if text.trim().is_empty() {
                continue;
            }
            let fault = |reason: String| ReplayError::Line { line, reason };
            let read = Line::read(&text).map_err(fault)?;
            let (node, epoch, seq) = (read.node.clone(), read.epoch, read.seq);
            let record = read.record().map_err(fault)?;
            let chain = by_number.entry((node.clone(), epoch)).or_default();
            match chain.get(&seq) {
                Some((_, known)) if *known == record => {}
                Some((first, _)) => {
                    return Err(ReplayError::Twice { line, first: *first, node, epoch, seq });
                }
                None => {
                    chain.insert(seq, (line, record));
                }
            }
        }
        let mut chains = BTreeMap::new();
        for ((node, epoch), records) in by_number {
            let mut chain: Vec<ChainedRecord> = Vec::with_capacity(records.len());
            for (seq, (line, record)) in records {
                let missing = chain.len() as u64 + 1;
                if seq != missing {
                    return Err(ReplayError::Gap { line, node, epoch, got: seq, missing });
                }
                let previous = chain.last().map_or(RecordDigest::ZERO, |last| last.digest);
                chain.push(ChainedRecord::append(&node, epoch, seq - 1, previous, record));
            }
            chains.insert((node, epoch), chain);
        }
        Ok(Self { chains })
    }

    /// Books the records into an empty ledger in `folder`, closes `months` and checks the whole.
    pub async fn book(
        &self,
        folder: &Path,
        fee: Fee,
        terms: &Terms,
        months: &[Period],
    ) -> Result<ReplayReport, ReplayError> {
        let location = Location::in_folder(folder, &format!("{fee}.db"))?;
        let (ledger, writer) = Ledger::open(&location, fee, Clock::System).await?;
        let ledger = ledger.with_close_grace(Duration::ZERO);
        let stop = CancellationToken::new();
        let writer = tokio::spawn(writer.run(stop.clone()));
        let report = self.book_in(&ledger, terms, months).await;
        stop.cancel();
        // A writer that panicked has told so; the report stands without it.
        let _ended = writer.await;
        report
    }

    async fn book_in(
        &self,
        ledger: &Ledger,
        terms: &Terms,
        months: &[Period],
    ) -> Result<ReplayReport, ReplayError> {
        if !ledger.chains().await?.is_empty() {
            return Err(ReplayError::NotEmpty { fee: ledger.fee() });
        }
        // Into empty books every version goes, or the file contradicts itself.
        for document in terms.documents(ledger.fee()) {
            let place = document.place.clone();
            ledger.put_document(document).await.map_err(|source| ReplayError::Terms { place, source })?;
        }
        for ((node, epoch), chain) in &self.chains {
            for records in chain.chunks(BATCH_RECORDS_MAX) {
                let batch = RecordBatch {
                    node: node.clone(),
                    epoch: *epoch,
                    records: records.to_vec(),
                    passed: None,
                };
                let answer = ledger.book(CheckedBatch::new(batch)?).await?.answer;
                if !matches!(answer, BatchAnswer::Booked { .. }) {
                    return Err(ReplayError::Refused(format!("{answer:?}")));
                }
            }
        }
        let mut closed = Vec::with_capacity(months.len());
        for period in months {
            let request = CloseRequest { period: *period, dry_run: false, after: String::new() };
            closed.push(ledger.close(&request).await?);
        }
        let (mut accounts, mut after) = (Vec::new(), String::new());
        loop {
            let page = ledger.accounts(&after, 1000).await?;
            let Some(last) = page.last() else { break };
            after.clone_from(&last.account);
            accounts.extend(page);
        }
        let totals = ledger.totals().await?;
        Ok(ReplayReport {
            exceptions: totals.exceptions,
            totals,
            accounts,
            closed,
            verify: ledger.verify().await?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tariff::demo_tariffs;

    fn line(seq: u64, change: &[(&str, serde_json::Value)]) -> String {
        let mut line = serde_json::json!({
            "node": "tokyo.n1", "epoch": 1, "seq": seq, "begin": "2025-10-15T09:00:00+09:00",
            "end": 1_760_486_405_000u64, "client": "bob", "content": "alice/song.wav",
            "hash": ContentHash::of(b"song"), "provider": "alice", "class": "purchase", "path": "peer",
            "home": "tokyo", "source": "osaka", "searched": true, "surrogate": null, "mobile_access": null,
            "delivery": format!("{seq:032x}"), "status": "complete", "bytes_total": 1_000_000,
            "bytes_sent": 1_000_000
        });
        for (key, value) in change {
            line[*key] = value.clone();
        }
        line.to_string()
    }

    #[test]
    fn times_are_read_as_numbers_and_as_texts() {
        let millis = |text| parse_time(text).map(|time| time.0);
        assert_eq!(millis("2025-10-15T09:00:00+09:00"), Some(1_760_486_400_000));
        assert_eq!(millis("2025-10-15T00:00:00.5Z"), Some(1_760_486_400_500));
        assert_eq!(millis("2025-10-14T19:00:00.0019-05:00"), Some(1_760_486_400_001));
        for bad in ["2025-10-15", "2025-13-15T00:00:00Z", "2025-10-15T00:00Z", "2025-10-15T00:00:00", "x"] {
            assert_eq!(millis(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_file_with_faults_is_refused_with_its_place() {
        let refused = |text: &str| ReplayFile::read(text.as_bytes()).err().unwrap().to_string();
        assert!(refused("{}").starts_with("line 1: "));
        assert!(
            refused(&[line(1, &[]), line(3, &[])].join("\n"))
                .contains("record 3 in epoch 1, but the file lacks record 2")
        );
        let other = line(1, &[("bytes_sent", 7.into())]);
        assert!(
            refused(&[line(1, &[]), other].join("\n"))
                .contains("line 2: record 1 of tokyo.n1 in epoch 1 is also line 1")
        );
        assert!(refused(&line(1, &[("class", "gift".into())])).contains("gift"));
        assert!(ReplayFile::read([line(2, &[]), line(1, &[]), line(1, &[])].join("\n").as_bytes()).is_ok());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_file_is_booked_into_both_ledgers_once() {
        let text = [line(2, &[("class", "reference".into())]), line(1, &[])].join("\n");
        let file = ReplayFile::read(text.as_bytes()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let month = "2025-10".parse().unwrap();
        let service = file.book(dir.path(), Fee::Service, &demo_tariffs(), &[month]).await.unwrap();
        // Twice 0.1 + 1 MB x 0.02 yen.
        assert_eq!(service.closed[0].invoices[0]["charges_micros"], 240_000);
        let content = file.book(dir.path(), Fee::Content, &demo_tariffs(), &[]).await.unwrap();
        let owed = content.accounts.iter().find(|account| account.account == "unbilled:bob").unwrap();
        assert_eq!(owed.balance_micros, 11_000_000);
        assert!(service.verify.ok && content.verify.ok && content.verify.records == 2);
        let again = file.book(dir.path(), Fee::Content, &demo_tariffs(), &[]).await;
        assert!(matches!(again, Err(ReplayError::NotEmpty { fee: Fee::Content })));
    }
}
