//! Contents and their holders: the rows, and what announcements do to them.
//!
//! The rows that some announcements are about are read together, changed in memory one announcement after the other, and
//! written together: a few statements, however many announcements. `contents.held` is always the number of holders of the
//! newest version.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use common::api::search::ChangeKind;
use common::name::ContentName;
use common::version::Version;

use crate::changes;
use crate::db::{Connection, version_of};
use crate::error::{Failure, integer};
use crate::statements::{Table, select_in};

/// Who holds: a site or an origin.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder {
    pub kind: &'static str,
    pub name: String,
}

const SITE: &str = "site";
const ORIGIN: &str = "origin";

impl Holder {
    pub fn site(name: &str) -> Self {
        Self { kind: SITE, name: name.to_owned() }
    }

    pub fn origin(name: &str) -> Self {
        Self { kind: ORIGIN, name: name.to_owned() }
    }

    fn of_row(kind: &str, name: String) -> Self {
        Self { kind: if kind == SITE { SITE } else { ORIGIN }, name }
    }
}

/// A version of a name with what is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    pub version: Version,
    pub len: i64,
    pub media_type: String,
    pub provider: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Newest {
    content: Content,
    /// This version, and so every earlier one, is not to be found any more.
    withdrawn: bool,
    held: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    version: Version,
    mark: i64,
}

/// What is known of one name, and what of it is to be written.
#[derive(Debug, Default)]
pub struct Entry {
    newest: Option<Newest>,
    holders: BTreeMap<Holder, Held>,
    /// Whether the content's row changed, and which rows of holders.
    is_changed: bool,
    touched: BTreeSet<Holder>,
    /// To be told by the change feed. The last says all that those before it said.
    change: Option<(ChangeKind, Version)>,
}

impl Entry {
    /// The holder holds a version. An older one than the newest known, or a withdrawn one, is answered with a
    /// change, so that the holder learns what it missed.
    pub fn hold(&mut self, holder: &Holder, content: Content, mark: i64) {
        let version = content.version;
        if let Some(known) = &self.newest
            && known.withdrawn
            && version <= known.content.version
        {
            self.change = Some((ChangeKind::Withdrawn, known.content.version));
            return;
        }
        let before = self.holders.get(holder).copied();
        if let Some(before) = before.filter(|before| before.version >= version) {
            // A snapshot confirms what was known.
            if before.mark < mark {
                self.put_holder(holder, Held { mark, ..before });
            }
            return;
        }
        self.put_holder(holder, Held { version, mark });
        match &mut self.newest {
            Some(known) if version < known.content.version => {
                self.change = Some((ChangeKind::NewVersion, known.content.version));
                return;
            }
            Some(known) if version == known.content.version => known.held += 1,
            known => {
                // The newest version from now on, with this as its one holder.
                self.change = known.is_some().then_some((ChangeKind::NewVersion, version));
                *known = Some(Newest { content, withdrawn: false, held: 1 });
            }
        }
        self.is_changed = true;
    }

    /// The holder no longer holds this version or an earlier one.
    pub fn release(&mut self, holder: &Holder, version: Version) {
        if self.holders.get(holder).is_some_and(|held| held.version <= version) {
            self.remove_holder(holder);
        }
    }

    /// The holder was asked for exactly this version and did not have it.
    pub fn missing(&mut self, holder: &Holder, version: Version) {
        if self.holders.get(holder).is_some_and(|held| held.version == version) {
            self.remove_holder(holder);
        }
    }

    /// The holder's snapshot did not confirm what it held.
    pub fn unconfirmed(&mut self, holder: &Holder, mark: i64) {
        if self.holders.get(holder).is_some_and(|held| held.mark < mark) {
            self.remove_holder(holder);
        }
    }

    /// Versions up to this one are not to be found any more, whoever holds them.
    pub fn withdraw(&mut self, version: Version) {
        let known = self.newest.as_ref();
        if known.is_some_and(|known| known.withdrawn && known.content.version >= version) {
            return;
        }
        self.change = Some((ChangeKind::Withdrawn, version));
        let gone = self.holders.extract_if(.., |_, held| held.version <= version);
        self.touched.extend(gone.map(|(holder, _)| holder));
        if known.is_some_and(|known| known.content.version > version) {
            return;
        }
        // Also of a name that was never announced: its holders' announcements may come later.
        let content = Content { version, len: 0, media_type: String::new(), provider: String::new() };
        let content = self.newest.take().map_or(content, |known| Content { version, ..known.content });
        self.newest = Some(Newest { content, withdrawn: true, held: 0 });
        self.is_changed = true;
    }

    fn put_holder(&mut self, holder: &Holder, held: Held) {
        self.holders.insert(holder.clone(), held);
        self.touched.insert(holder.clone());
    }

    fn remove_holder(&mut self, holder: &Holder) {
        let Some(held) = self.holders.remove(holder) else { return };
        self.touched.insert(holder.clone());
        if let Some(known) = self.newest.as_mut().filter(|known| known.content.version == held.version) {
            known.held -= 1;
            self.is_changed = true;
        }
    }
}

/// What a set of announcements did to the totals, and to the change feed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Effect {
    /// Names listed, more or fewer.
    pub contents: i64,
    /// Rows of holders, more or fewer.
    pub holders: i64,
    /// Last number of the change feed, if it grew.
    pub last_change: Option<i64>,
}

/// The entries that some announcements are about.
#[derive(Debug, Default)]
pub struct Entries<'a> {
    entries: HashMap<&'a str, Entry>,
    /// Names listed and rows of holders when they were read.
    listed_before: i64,
    holders_before: i64,
}

impl<'a> Entries<'a> {
    /// Reads what is known of names: their contents, and their holders among `holders`; all holders of those in `whole`.
    pub async fn read(
        conn: &mut Connection,
        names: &BTreeSet<&'a ContentName>,
        holders: &BTreeSet<Holder>,
        whole: &BTreeSet<&'a ContentName>,
    ) -> Result<Self, Failure> {
        let texts: Vec<&'a str> = names.iter().map(|name| name.as_str()).collect();
        let mut entries =
            Self { entries: texts.iter().map(|n| (*n, Entry::default())).collect(), ..Self::default() };
        entries.read_contents(conn, &texts).await?;
        for holder in holders {
            entries.read_holders(conn, &texts, Some(holder)).await?;
        }
        let whole: Vec<&'a str> = whole.iter().map(|name| name.as_str()).collect();
        entries.read_holders(conn, &whole, None).await?;
        entries.listed_before = entries.listed();
        entries.holders_before = entries.holders();
        Ok(entries)
    }

    async fn read_contents(&mut self, conn: &mut Connection, names: &[&'a str]) -> Result<(), Failure> {
        type Row = (String, i64, Vec<u8>, i64, String, String, i64, i64);
        let select =
            "SELECT name, time, hash, len, media_type, provider, withdrawn, held FROM contents WHERE name";
        let rows: Vec<Row> = select_in(conn, select, &[], names).await?;
        for (name, time, hash, len, media_type, provider, withdrawn, held) in rows {
            let Some(entry) = self.entries.get_mut(name.as_str()) else { continue };
            let content = Content { version: version_of(time, &hash)?, len, media_type, provider };
            entry.newest = Some(Newest { content, withdrawn: withdrawn != 0, held });
        }
        Ok(())
    }

    async fn read_holders(
        &mut self,
        conn: &mut Connection,
        names: &[&'a str],
        of: Option<&Holder>,
    ) -> Result<(), Failure> {
        type Row = (String, String, String, i64, Vec<u8>, i64);
        let rows: Vec<Row> = match of {
            Some(holder) => {
                let select = "SELECT name, kind, holder, time, hash, mark FROM holders
                     WHERE kind = $1 AND holder = $2 AND name";
                select_in(conn, select, &[holder.kind, &holder.name], names).await?
            }
            None => {
                let select = "SELECT name, kind, holder, time, hash, mark FROM holders WHERE name";
                select_in(conn, select, &[], names).await?
            }
        };
        for (name, kind, holder, time, hash, mark) in rows {
            let Some(entry) = self.entries.get_mut(name.as_str()) else { continue };
            entry
                .holders
                .insert(Holder::of_row(&kind, holder), Held { version: version_of(time, &hash)?, mark });
        }
        Ok(())
    }

    /// The entry of a name that was read.
    pub fn of(&mut self, name: &'a ContentName) -> &mut Entry {
        self.entries.entry(name.as_str()).or_default()
    }

    fn listed(&self) -> i64 {
        let is_listed = |entry: &&Entry| entry.newest.as_ref().is_some_and(|known| known.held > 0);
        i64::try_from(self.entries.values().filter(is_listed).count()).unwrap_or(i64::MAX)
    }

    fn holders(&self) -> i64 {
        i64::try_from(self.entries.values().map(|entry| entry.holders.len()).sum::<usize>())
            .unwrap_or(i64::MAX)
    }

    /// Writes what changed.
    pub async fn write(self, conn: &mut Connection) -> Result<Effect, Failure> {
        let mut effect = Effect {
            contents: self.listed() - self.listed_before,
            holders: self.holders() - self.holders_before,
            last_change: None,
        };
        // In the order of names: neighbours are on the same pages.
        let mut entries: Vec<(&str, Entry)> = self.entries.into_iter().collect();
        entries.sort_unstable_by_key(|(name, _)| *name);
        write_contents(conn, &entries).await?;
        write_holders(conn, &entries).await?;
        let changes: Vec<_> =
            entries.iter().filter_map(|(name, entry)| Some((*name, entry.change?))).collect();
        if !changes.is_empty() {
            effect.last_change = Some(changes::append(conn, &changes).await?);
        }
        Ok(effect)
    }
}

async fn write_contents(conn: &mut Connection, entries: &[(&str, Entry)]) -> Result<(), Failure> {
    const CONTENTS: Table<'_> = Table {
        insert: "INSERT INTO contents (name, time, hash, len, media_type, provider, withdrawn, held)",
        columns: 8,
        conflict: "ON CONFLICT (name) DO UPDATE SET
             time = excluded.time, hash = excluded.hash, len = excluded.len, media_type = excluded.media_type,
             provider = excluded.provider, withdrawn = excluded.withdrawn, held = excluded.held",
    };
    let changed: Vec<(&str, &Newest)> = entries
        .iter()
        .filter(|(_, entry)| entry.is_changed)
        .filter_map(|(name, entry)| Some((*name, entry.newest.as_ref()?)))
        .collect();
    CONTENTS
        .put(conn, &changed, |query, (name, newest)| {
            let Newest { content, withdrawn, held } = newest;
            Ok(query
                .bind((*name).to_owned())
                .bind(integer(content.version.time.0, "the version's time")?)
                .bind(content.version.hash.as_bytes().to_vec())
                .bind(content.len)
                .bind(content.media_type.clone())
                .bind(content.provider.clone())
                .bind(i64::from(*withdrawn))
                .bind(*held))
        })
        .await
}

async fn write_holders(conn: &mut Connection, entries: &[(&str, Entry)]) -> Result<(), Failure> {
    const HOLDERS: Table<'_> = Table {
        insert: "INSERT INTO holders (name, kind, holder, time, hash, mark)",
        columns: 6,
        conflict: "ON CONFLICT (name, kind, holder) DO UPDATE SET
             time = excluded.time, hash = excluded.hash, mark = excluded.mark",
    };
    let touched = entries.iter().flat_map(|(name, entry)| {
        entry.touched.iter().map(move |holder| (*name, holder, entry.holders.get(holder)))
    });
    let (mut put, mut gone) = (Vec::new(), Vec::new());
    for (name, holder, held) in touched {
        match held {
            Some(held) => put.push((name, holder, held)),
            None => gone.push((name, holder)),
        }
    }
    for (name, holder) in gone {
        sqlx::query("DELETE FROM holders WHERE name = $1 AND kind = $2 AND holder = $3")
            .bind(name)
            .bind(holder.kind)
            .bind(holder.name.as_str())
            .execute(&mut *conn)
            .await?;
    }
    HOLDERS
        .put(conn, &put, |query, (name, holder, held)| {
            Ok(query
                .bind((*name).to_owned())
                .bind(holder.kind)
                .bind(holder.name.clone())
                .bind(integer(held.version.time.0, "the version's time")?)
                .bind(held.version.hash.as_bytes().to_vec())
                .bind(held.mark))
        })
        .await
}

/// Changes what is known of one name.
pub async fn change(
    conn: &mut Connection,
    name: &ContentName,
    holder: &Holder,
    change: impl FnOnce(&mut Entry),
) -> Result<Effect, Failure> {
    let holders = BTreeSet::from([holder.clone()]);
    let mut entries = Entries::read(conn, &BTreeSet::from([name]), &holders, &BTreeSet::new()).await?;
    change(entries.of(name));
    entries.write(conn).await
}

/// Names listed, and rows of holders.
pub async fn totals(conn: &mut Connection) -> Result<(i64, i64), Failure> {
    let contents: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM contents WHERE held > 0").fetch_one(&mut *conn).await?;
    let holders: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM holders").fetch_one(conn).await?;
    Ok((contents, holders))
}
