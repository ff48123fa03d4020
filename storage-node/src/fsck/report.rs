//! What a check found, in figures and in words.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::catalog::inspect::IndexState;
use crate::log::survey::{Gap, LogFigures, Survey};

/// Findings of one kind that are told in words; the figures count all of them.
pub(super) const TOLD_MAX: usize = 20;

/// How bad a finding is; the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// It cannot be repaired here.
    Lost,
    /// Damage that `--repair` repairs.
    Damage,
    /// It was repaired just now.
    Repaired,
    /// The node takes care of it by itself.
    Note,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    pub what: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ChunkFigures {
    /// Chunks that are found.
    pub live: u64,
    /// Copies in the log that are not needed any more.
    pub dead: u64,
    /// Chunks whose bytes were read and have their hash, and those bytes.
    pub verified: u64,
    pub verified_bytes: u64,
    pub damaged: u64,
    /// The device or the object store answered with an error.
    pub unreadable: u64,
    /// Chunks that no row of the catalog knows of.
    pub without_row: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CatalogFigures {
    pub index: IndexState,
    /// Rows by their kind.
    pub rows: BTreeMap<String, u64>,
    /// Chunks that contents refer to and the store does not have.
    pub chunks_missing: u64,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    pub store: String,
    /// The bytes of chunks were not read.
    pub fast: bool,
    pub log: LogFigures,
    /// Absent when the log cannot be opened.
    pub chunks: Option<ChunkFigures>,
    pub catalog: Option<CatalogFigures>,
    /// The worst first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing is damaged any more.
    pub fn is_clean(&self) -> bool {
        !self.findings.iter().any(|f| matches!(f.severity, Severity::Damage | Severity::Lost))
    }

    pub(super) fn add(&mut self, severity: Severity, what: impl Into<String>) {
        let at = self.findings.partition_point(|finding| finding.severity <= severity);
        self.findings.insert(at, Finding { severity, what: what.into() });
    }

    /// Names up to [`TOLD_MAX`] things, then says how many more there are.
    pub(super) fn add_each(
        &mut self,
        severity: Severity,
        all: impl IntoIterator<Item = String>,
        count: u64,
        kind: &str,
    ) {
        let told: Vec<String> = all.into_iter().take(TOLD_MAX).collect();
        let more = count.saturating_sub(told.len() as u64);
        told.into_iter().for_each(|what| self.add(severity, what));
        if more > 0 {
            self.add(severity, format!("and {more} more {kind}"));
        }
    }

    /// Tells what the look at the log found and can be made again.
    pub(super) fn add_repairable(&mut self, survey: &Survey) {
        for offset in &survey.lost_superblocks {
            self.add(Severity::Damage, format!("the copy of the superblock at byte {offset} is damaged"));
        }
        let count = survey.lost_headers().count() as u64;
        let headers = survey
            .lost_headers()
            .map(|at| format!("the slot header at byte {at} is lost; its segment is there"));
        self.add_each(Severity::Damage, headers, count, "slot headers");
        let count = survey.lost_footers().count() as u64;
        let footers = survey
            .lost_footers()
            .map(|sequence| format!("the footer of segment {sequence} is damaged; its frames are there"));
        self.add_each(Severity::Damage, footers, count, "footers");
    }

    /// Tells what the look at the log found and nothing can bring back. `index_position` is where the index file
    /// stands, if it is of use.
    pub(super) fn add_lost(&mut self, survey: &Survey, index_position: Option<u64>) {
        for at in &survey.unreadable_slots {
            self.add(
                Severity::Lost,
                format!(
                    "the slot at byte {at} has neither a header nor a first frame that can be read; if a segment was in it, \
                     its chunks and rows are lost, and the node does not start"
                ),
            );
        }
        for sequence in &survey.cut_segments {
            let has_gap = survey.gaps.iter().any(|gap| gap.segment == *sequence);
            if !has_gap {
                self.add(Severity::Lost, format!("the last frames of segment {sequence} are lost with its footer: their chunks and rows are lost, and the node does not start"));
            }
        }
        let gaps = survey.gaps.iter();
        let (harmless, lost): (Vec<&Gap>, Vec<&Gap>) =
            gaps.partition(|gap| gap.has_footer && !needs_rows(gap, survey.figures.floor));
        let (harmless_len, told) = (harmless.len() as u64, harmless.into_iter().map(|gap| {
            format!(
                "the frames at byte {} cannot be read ({} bytes of segment {}); no row in them is needed, and the footer \
                 knows their chunks",
                gap.at, gap.bytes, gap.segment
            )
        }));
        self.add_each(Severity::Note, told.collect::<Vec<_>>(), harmless_len, "such places");
        let lost_len = survey.figures.frame_gaps - harmless_len;
        let told: Vec<String> = lost.into_iter().map(|gap| lost_gap(gap, index_position)).collect();
        self.add_each(Severity::Lost, told, lost_len, "such places");
        if survey.figures.frames_unfinished > 0 {
            self.add(
                Severity::Note,
                format!(
                    "{} frames at the end were being written when the node stopped; they were never acknowledged, and the \
                     next start drops them",
                    survey.figures.frames_unfinished
                ),
            );
        }
    }
}

fn needs_rows(gap: &Gap, floor: u64) -> bool {
    gap.to > floor && gap.lost_rows_bytes != Some(0)
}

fn lost_gap(gap: &Gap, index_position: Option<u64>) -> String {
    let Gap { segment, at, bytes, from, to, .. } = gap;
    let place = format!("the frames at byte {at} cannot be read ({bytes} bytes of segment {segment})");
    if !gap.has_footer {
        return format!(
            "{place}, and the segment has no footer: chunks and rows in them are lost, and the node does not start"
        );
    }
    let rows = match gap.lost_rows_bytes {
        Some(lost) => format!("{lost} bytes of rows"),
        None => "rows".to_owned(),
    };
    match index_position {
        Some(position) if position >= *to => format!(
            "{place}: {rows} between positions {from} and {to} are lost to a replay. The index file has them, so the node \
             starts; keep that file until the catalog is written out anew, it cannot be rebuilt"
        ),
        _ => format!(
            "{place}: {rows} between positions {from} and {to} are lost, and the index file does not have them: changes of \
             holdings, libraries or records are lost, and the node does not start"
        ),
    }
}
