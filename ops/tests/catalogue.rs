//! The committed catalogues are what the program says, and nothing in the documentation names what is in none of them.
//! `DOZO_REWRITE_FIXTURES=1` writes those under ops/reference anew.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Parser;
use common::catalogue::{load, metrics};
use ops::catalogue::{INVARIANTS, ROUTES};
use ops::cli::Cli;

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Files under a folder with one of the extensions, build results and what is hidden left out.
fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name == "target" || name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            found.extend(files(&path, extensions));
        } else if path.extension().is_some_and(|e| extensions.iter().any(|wanted| e == *wanted)) {
            found.push(path);
        }
    }
    found
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_committed_catalogues_are_up_to_date() {
    let catalogues = [
        ("metrics.md", ops::catalogue::metrics()),
        ("errors.md", ops::catalogue::errors()),
        ("routes.md", ops::catalogue::routes()),
        ("invariants.md", ops::catalogue::invariants()),
    ];
    let folder = project().join("ops/reference");
    for (name, text) in catalogues {
        let path = folder.join(name);
        if std::env::var_os("DOZO_REWRITE_FIXTURES").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        assert!(read(&path) == text, "{name} is not up to date; DOZO_REWRITE_FIXTURES=1 writes it anew");
    }
}

/// `.route("PATH", HANDLERS)` in sources: the path, and the methods that its handlers are for.
fn routes_of(source: &str) -> Vec<(String, BTreeSet<String>)> {
    let (source, _tests) = source.split_once("#[cfg(test)]").unwrap_or((source, ""));
    let mut routes = Vec::new();
    for part in source.split(".route(\"").skip(1) {
        let (path, rest) = part.split_once('"').unwrap();
        let mut depth = 1;
        let end = rest.find(|c| {
            depth += match c {
                '(' => 1,
                ')' => -1,
                _ => 0,
            };
            depth == 0
        });
        let handlers = &rest[..end.unwrap()];
        let mut methods = BTreeSet::new();
        for method in ["get", "put", "post", "delete"] {
            let is_there = handlers.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '('));
            if is_there.into_iter().any(|word| word.starts_with(&format!("{method}("))) {
                methods.insert(method.to_uppercase());
            }
        }
        if handlers.contains("any(") {
            methods.extend(["GET", "HEAD", "PUT", "DELETE"].map(str::to_owned));
        }
        routes.push((path.to_owned(), methods));
    }
    routes
}

#[test]
fn the_routes_of_the_catalogue_are_those_of_the_servers() {
    let sources = [
        ("every server", "common/src/admin.rs"),
        ("gateway", "gateway/src/routes/mod.rs"),
        ("gateway", "gateway/src/server.rs"),
        ("storage-node", "storage-node/src/routes/mod.rs"),
        ("search", "gateway/services/search/src/routes.rs"),
        ("origin", "gateway/services/origin/src/routes.rs"),
        ("mobile-access", "gateway/services/mobile-access/src/routes.rs"),
    ];
    let mut served = BTreeSet::new();
    for (server, file) in sources {
        for (path, methods) in routes_of(&read(&project().join(file))) {
            served.extend(methods.into_iter().map(|method| (server, path.clone(), method)));
        }
    }
    let mut listed = BTreeSet::new();
    for route in ROUTES {
        for method in route.methods.split(", ") {
            listed.insert((route.server, route.path.to_owned(), method.to_owned()));
        }
    }
    let missing: Vec<_> = served.difference(&listed).collect();
    assert!(missing.is_empty(), "not in the catalogue: {missing:?}");
    let gone: Vec<_> = listed.difference(&served).collect();
    assert!(gone.is_empty(), "served by nobody: {gone:?}");
}

#[test]
fn invariants_are_tested_by_what_they_say() {
    let sources: Vec<String> = files(&project(), &["rs"]).iter().map(|path| read(path)).collect();
    for invariant in INVARIANTS {
        for test in invariant.tests {
            let is_there = sources.iter().any(|source| source.contains(&format!("fn {test}(")));
            assert!(is_there, "{}: there is no test {test}", invariant.id);
        }
        if let Some(command) = invariant.command
            && let Err(error) = Cli::try_parse_from(command.split_whitespace())
        {
            panic!("{}: {command}: {error}", invariant.id);
        }
    }
}

/// The places in `text` that begin with `start`, each up to the first character that is not in it.
fn words<'a>(
    text: &'a str,
    start: &'a str,
    is_in: impl Fn(char) -> bool + 'a,
) -> impl Iterator<Item = &'a str> {
    text.match_indices(start).map(move |(at, _)| {
        let word = &text[at..];
        &word[..word.find(|c| !is_in(c)).unwrap_or(word.len())]
    })
}

#[test]
fn documents_name_only_metrics_and_routes_that_there_are() {
    let is_metric = |word: &str| {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end));
        let is_known = |name: &str| metrics::ALL.iter().chain(load::ALL).any(|metric| metric.name == name);
        is_known(word) || base.is_some_and(is_known)
    };
    let billing = billing::description();
    let templates: Vec<&str> =
        ROUTES.iter().map(|r| r.path).chain(billing.paths.paths.keys().map(String::as_str)).collect();
    let is_route = |word: &str| templates.iter().any(|template| fits(template, word));
    let mut documents = files(&project().join("ops"), &["md", "yml", "yaml", "json"]);
    documents.push(project().join("README.md"));
    for document in documents {
        let text = read(&document);
        let name = document.display();
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '*';
        // Recorded series are called `job:dozo_…`.
        let recorded = words(&text, ":dozo_", |c| c == ':' || is_name(c));
        let recorded: BTreeSet<_> = recorded.filter_map(|word| word[1..].split(':').next()).collect();
        for word in words(&text, "dozo_", is_name).filter(|word| looks_like_metric(word)) {
            if recorded.contains(word) {
                continue;
            }
            assert!(is_metric(word), "{name}: there is no metric {word}");
        }
        for word in words(&text, "bench_", is_name) {
            assert!(is_metric(word), "{name}: there is no metric {word}");
        }
        let is_path = |c: char| c.is_ascii_alphanumeric() || "/-_.{}*$".contains(c);
        for word in words(&text, "/v1/", is_path) {
            let path = word.trim_end_matches(['.', '/']);
            assert!(path == "/v1" || is_route(path), "{name}: there is no route {path}");
        }
    }
}

/// Whether a name begins as those of metrics do, up to its second part; roles and files of databases do not.
fn looks_like_metric(word: &str) -> bool {
    let family = |name: &str| name.splitn(3, '_').take(2).collect::<Vec<_>>().join("_");
    let is_long = word.matches('_').count() >= 2 && !word.contains('*');
    is_long && metrics::ALL.iter().any(|metric| family(metric.name) == family(word))
}

/// Whether a path, with placeholders or without, is one of a route's.
fn fits(template: &str, path: &str) -> bool {
    let (mut wanted, mut given) = (template.split('/'), path.split('/'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return true,
            (Some(part), Some(_)) if part.starts_with("{*") => return true,
            (Some(part), Some(got)) if part.starts_with('{') || part == got => {}
            // A document may name the beginning of some routes: `/v1/peer/…`.
            (Some(_), None) => return true,
            _ => return false,
        }
    }
}
