//! Whether a node or gateway may be stopped now. The map and what the nodes of its site say are judged together; nothing
//! is changed.

use std::collections::BTreeMap;
use std::time::Duration;

use common::api::can_stop::{CanStop, Risk};
use common::api::node::NodeStatus;
use common::auth::Role;
use common::cluster::{NodeEntry, NodeState, SiteEntry};
use common::error::{ErrorCode, chain};
use common::id::{NodeId, SiteId};
use futures_util::future::join_all;

use crate::departure::served_alone;
use crate::error::Failure;
use crate::server::App;

const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);

/// What each node that is there says, or why it says nothing.
type Said = BTreeMap<NodeId, Result<NodeStatus, String>>;

pub async fn can_stop(app: &App, server: &NodeId) -> Result<CanStop, Failure> {
    let map = app.view.borrow().map.clone();
    let unknown = || {
        let message = format!("there is no node or gateway {server}");
        Failure::refused(ErrorCode::NotFound, message)
    };
    let site = map.site(&SiteId::new(server.site())?).ok_or_else(unknown)?;
    if let Some(node) = site.node(server) {
        let asked = site.nodes.iter().filter(|node| node.alive).map(|node| ask(app, node));
        return Ok(judge_node(site, node, &join_all(asked).await.into_iter().collect()));
    }
    if site.gateways.iter().any(|gateway| gateway.name.as_str() == server.name()) {
        return Ok(judge_gateway(site, server));
    }
    Err(unknown())
}

async fn ask(app: &App, node: &NodeEntry) -> (NodeId, Result<NodeStatus, String>) {
    let asked = app.server.get_json(&node.admin, Role::StorageNode, "/v1/node", ANSWER_TIME_MAX);
    (node.id.clone(), asked.await.map_err(|error| chain(&error)))
}

fn judge_gateway(site: &SiteEntry, server: &NodeId) -> CanStop {
    let mut verdict = CanStop::new(server);
    let is_other = |name: &str| name != server.name();
    if !site.gateways.iter().any(|gateway| gateway.alive && is_other(gateway.name.as_str())) {
        let message = format!("no other gateway of site {} is there: its clients would be refused", site.id);
        verdict.object(Risk::LastGateway, message);
    }
    verdict
}

fn judge_node(site: &SiteEntry, node: &NodeEntry, said: &Said) -> CanStop {
    let mut verdict = CanStop::new(&node.id);
    if !node.alive || node.state == NodeState::Removed {
        verdict.warnings.push("it does not run, as far as search knows".to_owned());
        return verdict;
    }
    let others: Vec<_> =
        site.nodes.iter().filter(|other| other.id != node.id && other.state != NodeState::Removed).collect();
    let (there, away): (Vec<&NodeEntry>, Vec<_>) = others.into_iter().partition(|other| other.alive);
    let own = said.get(&node.id).and_then(|said| said.as_ref().ok());
    if there.is_empty() {
        let message = format!("no other node of site {} is there: nothing would be to be had", site.id);
        verdict.object(Risk::LastNode, message);
    }
    judge_rows(site, node, own, &mut verdict);
    let copies = usize::from(site.replicas);
    let chunks = own.map_or(1, |own| own.chunks);
    if copies == 1 && chunks > 0 && !there.is_empty() {
        let message = format!(
            "site {} keeps one copy of everything: what {} has is not to be had while it is away",
            site.id, node.id
        );
        verdict.object(Risk::SoleCopy, message);
    } else if copies > 1 && away.len() + 1 >= copies {
        let names: Vec<&str> = away.iter().map(|other| other.id.as_str()).collect();
        let message =
            format!("{} is away: what only it and {} have would be nowhere", names.join(", "), node.id);
        verdict.object(Risk::SoleCopy, message);
    } else if there.len() < copies {
        verdict.warnings.push(format!(
            "what is written while it is away has fewer copies than the {copies} that site {} keeps; they are made up \
             for when it is back",
            site.id
        ));
    }
    if node.state == NodeState::Draining {
        verdict.object(Risk::Draining, format!("{} is being drained; wait until it is empty", node.id));
    }
    judge_moves(said, &mut verdict);
    verdict
}

/// Rows: holdings, libraries, deliveries, and what billing and search are still to be told.
fn judge_rows(site: &SiteEntry, node: &NodeEntry, own: Option<&NodeStatus>, verdict: &mut CanStop) {
    for shard in served_alone(site, &node.id) {
        let slots = site.slots_owned_by(shard).count();
        if slots > 0 {
            let message =
                format!("no node follows {shard}'s shard: nobody else has the rows of its {slots} slots");
            verdict.object(Risk::NoFollower, message);
        }
        let unsettled = own.filter(|_| *shard == node.id).map_or(0, |own| own.unsettled);
        if unsettled > 0 {
            let message = format!(
                "{unsettled} delivery records and announcements are not delivered yet, and nobody else has them"
            );
            verdict.object(Risk::Undelivered, message);
        }
    }
}

fn judge_moves(said: &Said, verdict: &mut CanStop) {
    for (node, said) in said {
        match said {
            Ok(status) if status.moves_pending_bytes > 0 => {
                let bytes = common::config::show_bytes(status.moves_pending_bytes);
                verdict
                    .object(Risk::Moves, format!("{node} still has {bytes} to bring to where they belong"));
            }
            Ok(_) => {}
            Err(error) => {
                verdict.object(Risk::NoAnswer, format!("{node} does not say what it has: {error}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use common::cluster::{GatewayEntry, MapEpoch, ShardEntry};
    use common::id::ServerName;

    use super::*;

    fn id(name: &str) -> NodeId {
        NodeId::new(&format!("tokyo.{name}")).unwrap()
    }

    fn node(index: u16, followers: &[u16]) -> NodeEntry {
        NodeEntry {
            id: id(&format!("n{}", index + 1)),
            http: String::new(),
            admin: String::new(),
            state: NodeState::Active,
            alive: true,
            weight: 1,
            capacity_bytes: 1,
            shard: ShardEntry { term: 1, primary: index, followers: followers.to_vec() },
        }
    }

    fn site(replicas: u8, nodes: Vec<NodeEntry>) -> SiteEntry {
        let count = nodes.len() as u16;
        let slot_owners = (0..common::placement::SLOT_COUNT).map(|slot| slot % count).collect();
        SiteEntry { replicas, nodes, slot_owners, ..SiteEntry::new(SiteId::new("tokyo").unwrap()) }
    }

    fn status(node: &NodeId) -> NodeStatus {
        NodeStatus {
            node: node.clone(),
            state: "active".into(),
            store: "memory:".into(),
            capacity_bytes: 1,
            used_bytes: 0,
            logical_bytes: 0,
            chunks: 3,
            moves_pending_bytes: 0,
            moves_rate_bytes_per_s: 0,
            moves_limit_bytes_per_s: 0,
            unsettled: 0,
            temporary_contents: 0,
            temporary_bytes: 0,
            epoch: MapEpoch(1),
        }
    }

    fn said(site: &SiteEntry) -> Said {
        let there = site.nodes.iter().filter(|node| node.alive);
        there.map(|node| (node.id.clone(), Ok(status(&node.id)))).collect()
    }

    fn risks(site: &SiteEntry, said: &Said) -> Vec<Risk> {
        let verdict = judge_node(site, &site.nodes[0], said);
        assert_eq!(verdict.can_stop, verdict.reasons.is_empty());
        verdict.reasons.iter().map(|reason| reason.code).collect()
    }

    /// Two copies of everything on three nodes.
    fn sound() -> SiteEntry {
        site(2, vec![node(0, &[1]), node(1, &[2]), node(2, &[0])])
    }

    #[test]
    fn a_node_of_which_all_is_elsewhere_too_may_stop() {
        let site = sound();
        let verdict = judge_node(&site, &site.nodes[0], &said(&site));
        assert_eq!(verdict, CanStop::new("tokyo.n1"));
        let two = self::site(2, vec![node(0, &[1]), node(1, &[0])]);
        let verdict = judge_node(&two, &two.nodes[0], &said(&two));
        assert!(verdict.can_stop && verdict.warnings[0].contains("fewer copies than the 2"), "{verdict:?}");
    }

    #[test]
    fn each_reason_against_it_is_told() {
        let alone = site(1, vec![node(0, &[])]);
        let mut undelivered = said(&alone);
        undelivered.insert(id("n1"), Ok(NodeStatus { unsettled: 4, ..status(&id("n1")) }));
        assert_eq!(risks(&alone, &undelivered), [Risk::LastNode, Risk::NoFollower, Risk::Undelivered]);

        let one_copy = site(1, vec![node(0, &[]), node(1, &[])]);
        assert_eq!(risks(&one_copy, &said(&one_copy)), [Risk::NoFollower, Risk::SoleCopy]);

        let mut one_away = sound();
        one_away.nodes[2].alive = false;
        assert_eq!(risks(&one_away, &said(&one_away)), [Risk::SoleCopy]);
        let mut follower_away = sound();
        follower_away.nodes[1].alive = false;
        assert_eq!(risks(&follower_away, &said(&follower_away)), [Risk::NoFollower, Risk::SoleCopy]);

        let mut draining = sound();
        draining.nodes[0].state = NodeState::Draining;
        assert_eq!(risks(&draining, &said(&draining)), [Risk::Draining]);

        let (site, mut moving) = (sound(), said(&sound()));
        moving.insert(id("n2"), Ok(NodeStatus { moves_pending_bytes: 9, ..status(&id("n2")) }));
        moving.insert(id("n3"), Err("not reached".into()));
        assert_eq!(risks(&site, &moving), [Risk::Moves, Risk::NoAnswer]);
    }

    #[test]
    fn what_a_follower_has_may_be_undelivered() {
        let site = sound();
        let mut undelivered = said(&site);
        undelivered.insert(id("n1"), Ok(NodeStatus { unsettled: 4, ..status(&id("n1")) }));
        assert_eq!(risks(&site, &undelivered), []);
    }

    #[test]
    fn the_last_gateway_of_a_site_goes_on() {
        let gateway = |name: &str, alive| GatewayEntry {
            name: ServerName::new(name).unwrap(),
            http: String::new(),
            s3: None,
            admin: String::new(),
            alive,
        };
        let mut site = sound();
        site.gateways = vec![gateway("g1", true), gateway("g2", false)];
        assert_eq!(judge_gateway(&site, &id("g1")).reasons[0].code, Risk::LastGateway);
        site.gateways[1].alive = true;
        assert!(judge_gateway(&site, &id("g1")).can_stop);
    }
}
