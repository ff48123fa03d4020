//! Clients that do a seeded mix of what clients do, and what each of them saw of every delivery.

use std::collections::BTreeMap;
use std::io::Result;

use bench::content::Choices;

use crate::http::{Client, Incoming};

/// A content that clients of a mix ask for.
pub struct Offer {
    pub name: String,
    pub bytes: Vec<u8>,
    /// Too long for sockets and buffers to swallow it: who hangs up early has not been sent the whole.
    pub is_big: bool,
}

/// What a client saw of one delivery.
#[derive(Debug, Clone)]
pub struct Seen {
    pub client: String,
    pub name: String,
    /// As the headers said.
    pub class: String,
    pub source: String,
    pub source_site: Option<String>,
    pub bytes_total: u64,
    /// Bytes that arrived, over all requests that belong to it.
    pub bytes: u64,
    /// A request of it broke off, or was broken off: more may have been sent than arrived.
    pub is_broken: bool,
}

/// What the clients of a mix saw.
#[derive(Debug, Default)]
pub struct Sight {
    /// By delivery; requests that came later may have joined it.
    pub seen: BTreeMap<String, Seen>,
    /// Requests that were refused or got no answer.
    pub refused: u64,
    /// Contents that were dropped.
    pub dropped: u64,
}

impl Sight {
    pub fn add(&mut self, other: Self) {
        self.refused += other.refused;
        self.dropped += other.dropped;
        for (delivery, later) in other.seen {
            let Some(seen) = self.seen.get_mut(&delivery) else {
                self.seen.insert(delivery, later);
                continue;
            };
            assert_eq!((&seen.client, &seen.name), (&later.client, &later.name), "{delivery} has two owners");
            seen.bytes += later.bytes;
            seen.is_broken |= later.is_broken;
        }
    }

    /// Begins a download; `None`: it was refused.
    pub fn begin(
        &mut self,
        client: &Client,
        offer: &Offer,
        range: Option<(u64, u64)>,
    ) -> Option<(String, Incoming)> {
        let header = range.map(|(from, to)| format!("bytes={from}-{}", to - 1));
        let headers: Vec<_> = header.iter().map(|range| ("range", range.as_str())).collect();
        let answer = client.open("GET", &format!("/v1/contents/{}", offer.name), &headers);
        let Ok(incoming) = answer else {
            self.refused += 1;
            return None;
        };
        if incoming.status != if range.is_some() { 206 } else { 200 } {
            self.refused += 1;
            let status = incoming.status;
            let answer = incoming.finish().map_or_else(|error| error.to_string(), |answer| answer.text());
            assert!(status == 503, "{} gets {status} for {}: {answer}", client.name, offer.name);
            return None;
        }
        let header = |name| incoming.header(name).expect("a delivery says what it is").to_owned();
        let delivery = header("dozo-delivery");
        let seen = self.seen.entry(delivery.clone()).or_insert_with(|| Seen {
            client: client.name.clone(),
            name: offer.name.clone(),
            class: header("dozo-class"),
            source: header("dozo-source"),
            source_site: incoming.header("dozo-source-site").map(str::to_owned),
            bytes_total: offer.bytes.len() as u64,
            bytes: 0,
            is_broken: false,
        });
        assert_eq!((&seen.client, &seen.name), (&client.name, &offer.name), "{delivery} has two owners");
        Some((delivery, incoming))
    }

    /// Reads at most `most` bytes of a content, or of a part of it; what arrives must be right.
    pub fn read(&mut self, client: &Client, offer: &Offer, range: Option<(u64, u64)>, most: u64) {
        let Some((delivery, incoming)) = self.begin(client, offer, range) else { return };
        let (from, to) = range.unwrap_or((0, offer.bytes.len() as u64));
        let mut got = 0;
        let whole = read_and_compare(incoming, &offer.bytes[from as usize..to as usize], most, &mut got);
        let seen = self.seen.get_mut(&delivery).expect("it was begun");
        seen.bytes += got;
        seen.is_broken |= !whole.is_ok_and(|whole| whole);
    }

    /// The next of a client's turns.
    pub fn turn(&mut self, client: &Client, offers: &[Offer], choices: &mut Choices) {
        let offer = &offers[choices.below(offers.len() as u64) as usize];
        let len = offer.bytes.len() as u64;
        if offer.is_big {
            // Hangs up somewhere in the first mebibyte, sometimes before the first byte.
            return self.read(client, offer, None, choices.below(1 << 20));
        }
        let cut = 1 + choices.below(len - 1);
        match choices.below(10) {
            0..4 => self.read(client, offer, None, len),
            4..6 => {
                self.read(client, offer, Some((0, cut)), len);
                self.read(client, offer, Some((cut, len)), len);
            }
            6..8 => self.read(client, offer, Some((cut, len)), len),
            // What its provider drops, and nobody else holds, is gone.
            _ if offer.name.starts_with(&format!("{}/", client.name)) => self.read(client, offer, None, len),
            _ => {
                let path = format!("/v1/library/{}", offer.name);
                match client.try_send("DELETE", &path, &[], &[]) {
                    Ok(answer) if answer.status < 300 => self.dropped += 1,
                    _ => self.refused += 1,
                }
            }
        }
    }
}

/// Whether all of `expected` arrived, unless `most` bytes are enough.
fn read_and_compare(mut incoming: Incoming, expected: &[u8], most: u64, got: &mut u64) -> Result<bool> {
    let mut buffer = vec![0; 64 << 10];
    while *got < most {
        let len = incoming.read_some(&mut buffer)?;
        if len == 0 {
            break;
        }
        let at = *got as usize;
        assert!(expected.get(at..at + len) == Some(&buffer[..len]), "wrong bytes from {at} on");
        *got += len as u64;
    }
    Ok(*got == expected.len() as u64)
}
