//! One PUT of a content over a connection of Dozo's own API.

use common::api::gateway::Published;
use http::Method;

use crate::content::Content;
use crate::wire::{Connection, Outgoing, WireError, read_text};

/// Puts one content.
pub async fn store(
    connection: &mut Connection,
    path: &str,
    content: Content,
) -> Result<Published, WireError> {
    let response = connection.send(Method::PUT, path, Outgoing::content(content)).await?;
    let text = read_text(response.into_body()).await?;
    serde_json::from_slice(&text).map_err(|_| WireError::Answer)
}
