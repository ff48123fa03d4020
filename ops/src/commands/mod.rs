//! What each command does. One file per thing that is worked on.

pub mod backup;
pub mod billing;
pub mod ca;
pub mod card;
pub mod catalogue;
pub mod config;
pub mod connect;
pub mod content;
pub mod directory;
pub mod fsck;
pub mod lost;
pub mod node;
pub mod origin;
pub mod replay;
pub mod scrub;
pub mod search;
pub mod site;
pub mod status;
pub mod support_bundle;
pub mod temporary;
pub mod usage;
pub mod who_holds;
