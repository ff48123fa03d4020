//! HTTP routes: where, who may call, what for.

use std::fmt::Write;

use serde_json::Value;
use utoipa::openapi::path::Operation;

use super::cell;

/// Which of a server's listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    Service,
    /// Health, figures and operation; kept off public networks.
    Admin,
}

/// Who may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    Anybody,
    /// With its token, or as a visitor with its card.
    Client,
    /// Another server of the cluster, by a call signed with the cluster's secret.
    Server,
    /// The operator, by the admin token.
    Operator,
}

impl Caller {
    fn as_str(self) -> &'static str {
        match self {
            Self::Anybody => "anybody",
            Self::Client => "client",
            Self::Server => "server, operator",
            Self::Operator => "operator",
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Route {
    pub server: &'static str,
    pub listener: Listener,
    pub methods: &'static str,
    pub path: &'static str,
    pub caller: Caller,
    pub what: &'static str,
}

macro_rules! routes {
    ($($server:literal $listener:ident { $($methods:literal $path:literal $caller:ident $what:literal;)* })*) => {
        /// Every route but those of the billing servers, which describe themselves as OpenAPI.
        pub const ROUTES: &[Route] = &[$($(Route {
            server: $server,
            listener: Listener::$listener,
            methods: $methods,
            path: $path,
            caller: Caller::$caller,
            what: $what,
        },)*)*];
    };
}

routes! {
    "every server" Admin {
        "GET" "/livez" Anybody "200 while the event loop turns, 503 once it is stuck.";
        "GET" "/readyz" Anybody "200 while it can do its work, 503 otherwise; `?verbose` tells each condition.";
        "GET" "/metrics" Anybody "Its figures, for Prometheus.";
        "GET" "/v1/debug/slow" Anybody "The slowest requests of the last hour, with their stages.";
    }
    "gateway" Service {
        "GET, HEAD, PUT, DELETE" "/v1/contents/{bucket}/{*key}" Client "Deliver, publish or withdraw a content.";
        "GET" "/v1/contents/{bucket}" Client "List a bucket.";
        "GET" "/v1/contents/{bucket}/" Client "The same.";
        "GET" "/v1/search" Client "Find contents by a part of their name.";
        "GET" "/v1/library" Client "What the client holds.";
        "GET, DELETE" "/v1/library/{bucket}/{*key}" Client "One content that it holds; DELETE gives it up.";
        "GET" "/v1/usage" Client "What the client holds, was delivered and is charged.";
        "GET" "/v1/quote/{bucket}/{*key}" Client "What a delivery would cost.";
        "GET" "/v1/invoices" Client "The client's invoices.";
        "GET" "/v1/invoices/{file}" Client "One of them as JSON, CSV, HTML or UBL.";
        "GET" "/v1/invoices/{number}/deliveries" Client "The deliveries behind it.";
        "GET" "/v1/statements" Client "A provider's statements.";
        "GET" "/v1/statements/{file}" Client "One of them.";
        "GET" "/v1/temporary" Client "What this site keeps for a visitor.";
        "GET, PUT" "/v1/buckets/{bucket}" Client "A bucket's settings.";
        "GET" "/v1/peer/ping" Server "For measuring the way here.";
        "GET" "/v1/peer/holding" Server "What the site holds of a name.";
        "GET" "/v1/peer/open" Server "The beginning of a content: holding, chunk list, first chunk.";
        "GET" "/v1/peer/chunks/{hash}" Server "One chunk.";
        "GET" "/v1/peer/collection" Server "A collection at work, for another gateway of the site.";
        "GET" "/v1/peer/collection/progress" Server "How far it is.";
        "GET" "/v1/peer/collection/want" Server "Asks for a part of it first.";
        "GET" "/v1/peer/ranking" Server "In which order sources would be asked, and why.";
        "POST" "/v1/peer/possession" Server "Home's answer about a client that visits another site.";
        "POST" "/v1/peer/ends" Server "How deliveries at another site ended.";
        "POST" "/v1/peer/challenge" Server "A challenge for a client's card.";
        "POST" "/v1/peer/answer" Server "The card's answer to it.";
        "GET" "/v1/peer/who-holds" Server "Nodes, clients and shared chunks of a content at this site.";
        "GET" "/v1/peer/usage" Server "What one client holds.";
        "GET" "/v1/peer/usages" Server "What clients hold, page by page.";
        "GET" "/v1/peer/temporary" Server "What the site keeps for visitors.";
    }
    "gateway" Admin {
        "GET" "/v1/map" Anybody "The cluster map in use.";
    }
    "storage-node" Service {
        "POST" "/v1/holdings/resolve" Server "A name's holding, noting who asks as a holder.";
        "POST" "/v1/holdings/hold" Server "Make or complete a holding.";
        "POST" "/v1/holdings/withdraw" Server "The provider takes a content back.";
        "POST" "/v1/holdings/release" Server "A client is a holder no more.";
        "GET" "/v1/holdings/clients" Server "Who holds a content.";
        "POST" "/v1/holdings/check-refs" Server "Which references are still needed.";
        "POST" "/v1/collections/lease" Server "Who collects a content.";
        "POST" "/v1/collections/release" Server "It is collected, or given up.";
        "POST" "/v1/chunks/claim" Server "Refer to chunks that are there.";
        "POST" "/v1/chunks/refs" Server "References to chunks.";
        "POST" "/v1/chunks/adopt" Server "Take references over from another node.";
        "POST" "/v1/chunks/release" Server "Give references up.";
        "GET, PUT" "/v1/chunks/{hash}" Server "A chunk's bytes.";
        "POST" "/v1/deliveries/begin" Server "Record a delivery before its first byte.";
        "POST" "/v1/deliveries/open" Server "Resolve and begin in one call.";
        "POST" "/v1/deliveries/join" Server "A further range of an open delivery.";
        "POST" "/v1/deliveries/end" Server "How deliveries ended.";
        "POST" "/v1/library/add" Server "Note what a client holds.";
        "POST" "/v1/library/drop" Server "The client gives it up.";
        "GET" "/v1/library" Server "A page of a client's library.";
        "GET" "/v1/library/row" Server "One row of it.";
        "GET" "/v1/library/account" Server "Its sums.";
        "POST" "/v1/temporary/keep" Server "Keep a content for a visitor.";
        "POST" "/v1/temporary/leave" Server "The visitor has left.";
        "POST" "/v1/temporary/complete" Server "All of it is there.";
        "GET" "/v1/temporary/kept" Server "What is kept of a name for a client.";
        "POST" "/v1/temporary/begin" Server "Record a visitor's delivery while home is away.";
        "POST" "/v1/temporary/ends" Server "Keep ends for a home that is away.";
        "POST" "/v1/temporary/list" Server "What is kept for visitors.";
        "POST" "/v1/challenges/answer" Server "Mark a challenge as answered.";
        "POST" "/v1/tally" Server "Changes of what clients hold alone and share.";
        "POST" "/v1/tally/sums" Server "The sums of it.";
        "POST" "/v1/slots/export" Server "Rows of slots that move away.";
        "POST" "/v1/slots/export-anew" Server "The same, from the beginning.";
        "POST" "/v1/slots/release" Server "The new owner has them.";
        "GET" "/v1/records/heads" Server "Ends of the record chains.";
        "GET" "/v1/records/digest" Server "The digest of a record.";
        "GET" "/v1/audit" Server "Delivery records, page by page.";
        "GET, PUT" "/v1/map" Server "The cluster map in use; PUT brings a newer one.";
        "POST" "/v1/shards/{shard}/ship" Server "A primary's changes, for a follower.";
    }
    "storage-node" Admin {
        "GET" "/v1/node" Anybody "State, store, capacity, use, moves.";
        "GET" "/v1/map" Anybody "The cluster map in use.";
        "GET, POST" "/v1/scrub" Anybody "How far verifying is; POST starts a round.";
    }
    "search" Service {
        "POST" "/v1/servers" Server "Register, and stay registered.";
        "POST" "/v1/servers/leave" Server "A server stops: nobody is sent to it any more.";
        "GET" "/v1/map" Server "The cluster map; waits for a newer one if asked to.";
        "POST" "/v1/map/slots/fence" Server "Slots take no changes while they move.";
        "POST" "/v1/map/slots/move" Server "Slots have a new owner.";
        "POST" "/v1/map/shards/followers" Server "A shard's followers.";
        "POST" "/v1/map/shards/hand-over" Server "A shard goes to another node.";
        "POST" "/v1/nodes/suspect" Server "A node seems to be away.";
        "GET" "/v1/nodes/{node}/can-stop" Server "Whether a node or gateway may be stopped: 200, or 412 with reasons.";
        "POST" "/v1/nodes/{node}/{action}" Server "Drain, undrain or remove a node.";
        "PUT" "/v1/sites/{site}" Server "A site's settings.";
        "PUT" "/v1/sites/{site}/zone" Server "Its zone.";
        "PUT" "/v1/sites/{site}/distance" Server "How far others are from it.";
        "POST" "/v1/sites/{site}/resync" Server "Its nodes announce all that they hold.";
        "GET, POST" "/v1/clients" Server "Clients; POST makes one.";
        "POST" "/v1/clients/{client}/disable" Server "Disable a client.";
        "POST" "/v1/clients/{client}/limits" Server "Its quota and rates.";
        "GET" "/v1/clients/by-token/{hash}" Server "Whose token it is.";
        "GET, POST" "/v1/cards" Server "Cards; POST enters one.";
        "POST" "/v1/cards/disable" Server "Disable cards.";
        "GET" "/v1/cards/{card}" Server "Whose card it is.";
        "GET" "/v1/buckets" Server "Buckets.";
        "GET, PUT" "/v1/buckets/{bucket}" Server "One bucket.";
        "GET" "/v1/contents/lookup" Server "Which sites and origins hold a content.";
        "GET" "/v1/contents/by-hash/{hash}" Server "Contents with these bytes.";
        "GET" "/v1/contents/by-provider/{client}" Server "A provider's contents.";
        "GET" "/v1/contents/holders" Server "Holders with their versions, silent ones among them.";
        "GET" "/v1/contents/list" Server "A bucket's contents.";
        "GET" "/v1/contents/search" Server "Contents by a part of their name.";
        "POST" "/v1/contents/missing" Server "A holder did not have what it announced.";
        "GET" "/v1/changes" Server "The feed of changes.";
        "POST" "/v1/announcements" Server "What a node or an origin holds now.";
        "GET" "/v1/sd/prometheus" Anybody "Every server's address for Prometheus.";
    }
    "search" Admin {
        "GET" "/v1/sd/prometheus" Anybody "The same.";
    }
    "origin" Service {
        "GET" "/v1/peer/holding" Server "What is registered under a name.";
        "GET" "/v1/peer/open" Server "The beginning of an original.";
        "GET" "/v1/peer/chunks/{hash}" Server "One chunk of it.";
        "GET" "/v1/peer/ping" Server "For measuring the way here.";
        "GET" "/v1/status" Server "Sources and how far their scans are.";
        "GET, POST" "/v1/sources" Server "Sources; POST adds one.";
        "DELETE" "/v1/sources/{bucket}" Server "Removes one.";
        "POST" "/v1/sources/{bucket}/rescan" Server "Reads one anew.";
    }
    "mobile-access" Service {
        "POST" "/v1/challenge" Anybody "A client away from home asks for a challenge.";
        "POST" "/v1/answer" Anybody "Its card's answer; a session and the sites near here come back.";
    }
}

/// The routes of all servers as Markdown; those of the billing servers from their own description.
pub fn routes() -> String {
    let mut text = String::from(
        "# Routes\n\n\
         Every HTTP route, who may call it and what for. Generated by `dozo catalogue routes`; the billing servers' is \
         told in full by `dozo billing openapi`.\n",
    );
    let mut titled = None;
    for route in ROUTES {
        let place = (route.server, route.listener);
        if titled != Some(place) {
            titled = Some(place);
            let listener = match route.listener {
                Listener::Service => "service listener",
                Listener::Admin => "admin listener",
            };
            heading(&mut text, &format!("{}, {listener}", route.server));
        }
        row(&mut text, route.methods, route.path, route.caller.as_str(), route.what);
    }
    heading(&mut text, "service-billing, content-billing, service listener");
    for (path, item) in &billing::description().paths.paths {
        let operations = [("GET", &item.get), ("PUT", &item.put), ("POST", &item.post)];
        for (method, operation) in operations {
            let Some(operation) = operation else { continue };
            let summary = operation.summary.clone().unwrap_or_default();
            row(&mut text, method, path, &callers(operation), &format!("{}.", summary.trim_end_matches('.')));
        }
    }
    text
}

/// Who may call an operation, as its description has it: a scheme with the roles that it is for, or the scheme alone.
fn callers(operation: &Operation) -> String {
    let schemes = serde_json::to_value(&operation.security).unwrap_or_default();
    let schemes = schemes.as_array().into_iter().flatten().filter_map(Value::as_object).flatten();
    let mut callers = Vec::new();
    for (scheme, roles) in schemes {
        match roles.as_array().filter(|roles| !roles.is_empty()) {
            Some(roles) => callers.extend(roles.iter().filter_map(Value::as_str).map(str::to_owned)),
            None => callers.push(scheme.clone()),
        }
    }
    if callers.is_empty() { Caller::Anybody.as_str().to_owned() } else { callers.join(", ") }
}

fn heading(text: &mut String, title: &str) {
    let _ = write!(text, "\n## {title}\n\n| method | path | who | |\n|---|---|---|---|\n");
}

fn row(text: &mut String, methods: &str, path: &str, who: &str, what: &str) {
    let _ = writeln!(text, "| {methods} | `{path}` | {who} | {} |", cell(what));
}
