//! What servers say to each other and to clients: one module per server, with its routes' types and a typed
//! client. Bodies are JSON, the most frequent ones [compact](form); chunk bytes travel raw.

pub mod billing;
pub mod can_stop;
pub mod collect;
pub mod extract;
pub mod form;
pub mod gateway;
pub mod mobile_access;
pub mod node;
pub mod origin;
pub mod peer;
pub mod search;
pub mod temporary;
